"""Draw chains of revisions on questions to learn from, for a verifier that reads the history.

A verifier trained on the student's solutions alone has seen neither a reviser's attempts nor
earlier attempts in a prompt. Each attempt drawn here is labelled by its last answer; the attempts
before it are in its prompt, so that the verifier reads them as it reads the question.

Source: Snell et al. 2024, arXiv 2408.03314, section 6.1 and appendix J.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Generator, Sampling, Scorer, Solution
from distill.core.progress import progress
from distill.core.records import Problem, Trace, Verdict
from distill.core.statistics import Bootstrap
from distill.core.store import Shards, Stage, manifest
from distill.grading.check import GRADERS, check
from distill.models import scoring
from distill.models.reader import Reader
from distill.test_time import calibration, strategy
from distill.test_time.revise import draw_chains
from distill.test_time.rollouts import ANSWERED, Labelled
from distill.test_time.strategy import Models, Question
from distill.test_time.verifier import OUTCOME, PAPER_OPTIMIZER, Training, require_no_decay, train
from distill.text import steps
from distill.text.prompts import FORMATS
from distill.training.optimizers import Optimizer

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("chains",)
VERIFIER_OUTPUTS = ("verifier/chains",)
CHAINS: Mapping[str, int] = {"train": 4, "validation": 4}


def draw(
    problems: Sequence[Problem],
    models: Models,
    *,
    chains: int,
    length: int,
    prompt: Callable[[str], str],
    seed: int = 0,
) -> Iterator[Trace]:
    """Yield every attempt of the chains of some problems; its prompt shows those before it.

    The sample's number counts the attempts of a problem, chain after chain.
    """
    questions = [Question(problem.problem_id, prompt(problem.question)) for problem in problems]
    accounts = strategy.open_accounts(questions)
    numbers = {question.problem_id: itertools.count() for question in questions}
    for chain in draw_chains(questions, chains, length, models, accounts, seed=seed):
        name = chain.question.problem_id
        for attempt in chain.attempts:
            yield Trace(
                problem_id=name,
                sample=next(numbers[name]),
                prompt=attempt.prompt,
                model=models.generator.model,
                seed=attempt.seed,
                **attempt.completion.trace_fields(),
            )


def label(solutions: Iterable[tuple[Trace, Verdict]]) -> list[Labelled]:
    """Return the attempts that have an answer, each of its steps labelled by the answer."""
    found = []
    for trace, verdict in solutions:
        if verdict.outcome in ANSWERED:
            cut = steps.split(trace.text)
            label = float(verdict.outcome == "right")
            found.append(
                Labelled(trace.problem_id, Solution(trace.prompt, cut), (label,) * len(cut))
            )
    return found


def run(
    *,
    run_dir: Path,
    reviser: Generator,
    chains: Mapping[str, int] = CHAINS,
    length: int = 4,
    sampling: Sampling = Sampling(top_logprobs=0),  # noqa: B008
    prompt: Callable[[str], str] = FORMATS["zero_shot_cot"],
    grader: str = "default",
    seed: int = 0,
    shard_questions: int = 256,
) -> dict[str, Any]:
    """Fill RUN_DIR/chains with attempts at the questions of some splits; resume if stopped.

    Args:
        run_dir: the run directory; its stage `problems` is complete.
        reviser: writes the attempts.
        chains: of each question, by split.
        length: attempts of a chain.
        sampling: how attempts are drawn.
        prompt: a question's prompt without attempts.
        grader: a name of `check.GRADERS`.
        seed: of all draws.
        shard_questions: whose chains are drawn together, so that batches are full; a kill loses at
            most so many. Not a setting of the run: it does not change the attempts.

    Raises:
        UserError: there are no such problems or grader, or the reviser cannot serve.
    """
    if grader not in GRADERS:
        raise UserError(f"a grader of {', '.join(GRADERS)}", grader, "name one of them")
    run_dir = Path(run_dir)
    settings = {"reviser": reviser, "chains": chains, "length": length, "sampling": sampling}
    settings |= {"prompt": prompt, "grader": grader, "seed": seed}
    with Stage.open(
        run_dir, "chains", settings=settings, inputs=["problems"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        traces = Shards(run_dir / "chains", Trace)
        models = Models(reviser, None, sampling)
        for split, count in chains.items():
            draw_part = functools.partial(
                draw, models=models, chains=count, length=length, prompt=prompt, seed=seed
            )
            _fill(traces, _select(run_dir, split), draw_part, shard_questions)
        stage.finish(**_counts(run_dir, chains, grader))
        return stage.summary


def _select(run_dir: Path, split: str) -> list[Problem]:
    found = [problem for problem in Shards(run_dir / "problems", Problem) if problem.split == split]
    if not found:
        raise UserError(f"problems of {split}", "none", "add a source or take the split out")
    return found


def _fill(
    sink: Shards[Trace],
    problems: Sequence[Problem],
    draw_part: Callable[[Sequence[Problem]], Iterator[Trace]],
    size: int,
) -> None:
    """Draw the chains of the problems that have none; a shard holds whole problems."""
    done = {name for (name,) in sink.keys("problem_id")}
    left = [problem for problem in problems if problem.problem_id not in done]
    parts = list(strategy.chunks(left, size))
    for part in progress(parts, name="chains", total=len(parts), unit="parts"):
        sink.append(draw_part(part))


def solutions(run_dir: Path, split: str, grader: str) -> list[tuple[Trace, Verdict]]:
    """Return every attempt at the questions of a split with its verdict."""
    problems = [p for p in Shards(Path(run_dir) / "problems", Problem) if p.split == split]
    of_split = {problem.problem_id for problem in problems}
    traces = [t for t in Shards(Path(run_dir) / "chains", Trace) if t.problem_id in of_split]
    return list(zip(traces, check(traces, problems, GRADERS[grader]), strict=True))


def examples(run_dir: Path, split: str) -> list[Labelled]:
    """Return the labelled attempts of a split.

    Raises:
        UserError: the stage is not complete.
    """
    grader = manifest(run_dir, "chains")["settings"]["grader"]
    return label(solutions(run_dir, split, grader))


def _counts(run_dir: Path, splits: Iterable[str], grader: str) -> dict[str, Any]:
    """Count attempts, and how a revision changes what was right or wrong before it."""
    turned = {"mended": 0, "spoilt": 0, "stayed_right": 0, "stayed_wrong": 0}
    attempts = tokens = 0
    for split in splits:
        before: dict[str, tuple[str, bool]] = {}
        for trace, verdict in solutions(run_dir, split, grader):
            attempts, tokens = attempts + 1, tokens + len(trace.tokens)
            right = verdict.outcome == "right"
            shown = before.get(trace.problem_id)
            if shown and trace.prompt.endswith(f"\nA: {shown[0]}"):
                names = {True: ("spoilt", "stayed_right"), False: ("stayed_wrong", "mended")}
                turned[names[shown[1]][right]] += 1
            before[trace.problem_id] = trace.text, right
    return {"attempts": attempts, "tokens": tokens, **turned}


# --- The verifier ------------------------------------------------------------------------------


def verifier(
    *,
    run_dir: Path,
    student: str,
    steps: int,
    save_every: int,
    batch_size: int = 128,
    reader: Reader | None = None,
    optimizer: Optimizer = PAPER_OPTIMIZER,
    dropout_rate: float = 0.05,
    share: float = 0.1,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Train an outcome verifier that reads the attempts before the one that it scores.

    It goes to RUN_DIR/verifier/chains/model, where `scoring.Verifier` finds it; the summary
    has its calibration on the validation split's attempts, where there are any.

    Args:
        run_dir: the run directory; its stage `chains` is complete.
        student: directory of the model it is initialised from: the generator or the reviser.
        steps: optimizer steps.
        save_every: steps between checkpoints, at which the held-out loss is computed.
        batch_size: attempts of a step.
        reader: as for the stage `verifier`.
        optimizer: as for the stage `verifier`.
        dropout_rate: of what learns.
        share: of the train questions, held out.
        seed: of all draws.
        resamples: of the bootstrap over questions.

    Raises:
        UserError: `chains` is not complete, or the student is damaged.
    """
    training = Training(
        student=student,
        kind=OUTCOME,
        steps=steps,
        save_every=save_every,
        batch_size=batch_size,
        optimizer=optimizer,
        dropout_rate=dropout_rate,
        share=share,
        seed=seed,
        reader=reader,
    )
    settings = {**vars(training), "resamples": resamples}
    require_no_decay(reader, optimizer)
    run_dir = Path(run_dir)
    with Stage.open(
        run_dir,
        "chain_verifier",
        settings=settings,
        inputs=["chains"],
        reads=[student],
        outputs=VERIFIER_OUTPUTS,
    ) as stage:
        if not stage.complete:
            directory = run_dir / "verifier" / "chains"
            fitted = train(examples(run_dir, "train"), directory, training)
            scorer = scoring.load(directory / "model")
            rows = examples(run_dir, "validation")
            report = _calibration(rows, scorer, Bootstrap(resamples, seed)) if rows else {}
            stage.finish(step=fitted["step"], **fitted["training"], **report)
        return stage.summary


def _calibration(rows: Sequence[Labelled], scorer: Scorer, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the calibration of the scores of whole attempts."""
    scores = dict(scorer.score([row.solution for row in rows]))
    kept = [n for n in range(len(rows)) if len(scores[n].values)]
    if not kept:
        return {}
    values = np.array([scores[n].values[-1] for n in kept], float)
    labels = np.array([rows[n].labels[-1] for n in kept])
    ids = np.array([rows[n].problem_id for n in kept])
    scored = calibration.Scored(values, labels, np.ones(len(kept)), ids)
    return {"calibration": calibration.calibration(scored, bootstrap)}
