"""A run directory as harvest and check leave it, from built-in problems and a made-up teacher."""

import re

import numpy as np

from distill.core import paths
from distill.core.records import Problem, Trace, Verdict
from distill.core.store import Shards, Stage
from distill.problems.builtin import arithmetic

STUDENT = paths.shipped("data/vocabularies/student.model")
K = 3
WORDS = (b" the", b" 4", b" has", b" and", b"7", b"\n", b" so", b".")


def trace_of(problem, sample, *, logprob=None):
    """A trace that tells the problem's own chain, with candidates drawn from its name."""
    rng = np.random.default_rng([sample, *problem.problem_id.encode()])
    text = problem.chain
    tokens = tuple(t.encode() for t in re.findall(r"\n| ?\w+| ?[^\w\s]+|\s+", text))
    probs = -np.sort(-rng.dirichlet(np.ones(K + 1), len(tokens)), axis=1)[:, :K]
    others = [[w for w in rng.permutation(WORDS).tolist() if w != t][: K - 1] for t in tokens]
    return Trace(
        problem_id=problem.problem_id,
        sample=sample,
        prompt="",
        text=text,
        tokens=tokens,
        logprobs=np.log(probs[:, 0]).astype(np.float32) if logprob is None else logprob,
        top_tokens=tuple(w for t, row in zip(tokens, others, strict=True) for w in (t, *row)),
        top_logprobs=np.log(probs).astype(np.float32).ravel(),
        top_ends=np.arange(K, K * len(tokens) + 1, K, dtype=np.int32),
        end_logprob=-0.1,
        finish_reason="stop",
        model="made up",
        seed=sample,
    )


def problems(count):
    return [arithmetic.problem("gsm", "train", number) for number in range(count)]


def fill(run_dir, asked, traces, verdicts, *, shard=7):
    """Write three complete stages; the traces in shards of a few."""
    with Stage.open(run_dir, "problems", settings={}, outputs=["problems"]) as stage:
        Shards(run_dir / "problems", Problem).append(asked)
        stage.finish()
    with Stage.open(
        run_dir, "harvest", settings={}, inputs=["problems"], outputs=["traces"]
    ) as stage:
        for start in range(0, len(traces), shard):
            Shards(run_dir / "traces", Trace).append(traces[start : start + shard])
        stage.finish()
    inputs = ["problems", "harvest"]
    with Stage.open(run_dir, "check", settings={}, inputs=inputs, outputs=["verdicts"]) as stage:
        Shards(run_dir / "verdicts", Verdict).append(verdicts)
        stage.finish()


def world(run_dir, *, count=8, samples=3, order=None):
    """Fill a run directory; every fourth trace is wrong, each problem has a right one."""
    asked = problems(count)
    traces = [trace_of(problem, sample) for problem in asked for sample in range(samples)]
    verdicts = [
        Verdict(t.problem_id, t.sample, "wrong" if i % 4 == 3 else "right", None, "made up")
        for i, t in enumerate(traces)
    ]
    if order is not None:
        picked = np.random.default_rng(order).permutation(len(traces))
        traces, verdicts = [traces[i] for i in picked], [verdicts[i] for i in picked[::-1]]
    fill(run_dir, asked, traces, verdicts)
    return asked, traces, verdicts
