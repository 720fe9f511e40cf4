"""The whole study of compute at test time: ask every strategy at every budget, record, and report.

What the records say is worked out in `analysis`; here they are made, and a study that was killed
goes on with those that are missing.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distill.core.errors import UserError
from distill.core.ports import Generator, Sampling, Scorer
from distill.core.progress import progress
from distill.core.records import Answered, Problem
from distill.core.store import Shards, Stage, atomic_path, write_json
from distill.models.sampling import LocalGenerator
from distill.models.scoring import LocalScorer, ScoringModel, Verifier
from distill.models.t5 import T5Model
from distill.problems import problems as corpus
from distill.test_time import allocate, analysis, difficulty, ledger, outcomes, strategy, tables
from distill.test_time.ledger import Config
from distill.test_time.outcomes import DIFFICULTY, GREEDY, SAMPLES, Records, Shapes
from distill.test_time.search import BestOf, LookAhead
from distill.test_time.strategy import Models, Question, Solved, Strategy
from distill.text import answers
from distill.text.prompts import FORMATS

logger = logging.getLogger(__name__)

# Solutions that are drawn together, so many that chains of a whole budget fill a batch; what a kill
# may lose.
# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("scale", "reports/scale*")
SHARD_SOLUTIONS = 8192
SEARCHES = (
    LookAhead(),
    LookAhead(4),
    LookAhead(ahead=1),
    LookAhead(ahead=3),
    LookAhead(4, ahead=3),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A strategy to be asked at a budget, under the name that its records have."""

    name: str
    solving: Strategy
    budget: int
    models: Models
    seed: int


def answered(
    task: Task, problems: Sequence[Problem], prompt: Callable[[str], str]
) -> list[Answered]:
    """Return the records of a task on some problems, in their order."""
    questions = [Question(problem.problem_id, prompt(problem.question)) for problem in problems]
    found = task.solving.solve(questions, task.budget, task.models, seed=task.seed)
    return [_record(task, *pair) for pair in zip(problems, found, strict=True)]


def _record(task: Task, problem: Problem, solved: Solved) -> Answered:
    candidates = solved.candidates
    scores = [np.nan if each.score is None else each.score for each in candidates]
    return Answered(
        task.name,
        task.budget,
        problem.problem_id,
        solved.answer,
        _right(solved.answer, problem),
        solved.charged,
        solved.source,
        solved.policy.requests,
        solved.policy.read,
        solved.policy.drawn,
        solved.verifier.requests,
        solved.verifier.read,
        tuple(each.text.encode() for each in candidates),
        tuple((each.answer or "").encode() for each in candidates),
        np.array([_right(each.answer, problem) for each in candidates], np.uint8),
        np.array(scores, np.float32),
    )


def _right(answer: str | None, problem: Problem) -> bool:
    return answer is not None and answers.equal(answer, problem.answer) is True


# --- The stage ---------------------------------------------------------------------------------


def run(
    *,
    run_dir: Path,
    generator: Generator,
    scorer: Scorer,
    sources: Sequence[corpus.Source] = (),
    splits: Sequence[str] = ("report", "test"),
    limit: int | None = None,
    prompt: Callable[[str], str] = FORMATS["zero_shot_cot"],
    sampling: Sampling = Sampling(max_tokens=160, top_logprobs=0),  # noqa: B008
    budgets: Sequence[int] = (1, 4, 16, 64),
    strategies: Sequence[Strategy] = SEARCHES,
    difficulty_samples: int = 32,
    bins: int = difficulty.BINS,
    larger: Mapping[str, Generator] = MappingProxyType({}),
    ratios: Sequence[float] = (0.16, 0.79, 22.0),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the study of compute at test time; go on where an earlier start stopped.

    Fills RUN_DIR/scale with a record for each strategy, budget and problem and writes
    RUN_DIR/reports/scale.json, scale.md and the policies scale-policy-*.json for `distill answer`;
    the run's report draws the curves. Votes over samples are read off the samples of the largest
    budget, in expectation over their subsets; everything else is run at every budget that it can
    have.

    Args:
        run_dir: the run directory; its stage `problems` is complete where there are no sources.
        generator: the policy.
        scorer: the verifier.
        sources: what to fill RUN_DIR/problems from, if it is not filled.
        splits: which to ask; the verifier must not have seen them.
        limit: most problems of a set; all where None.
        prompt: a question's prompt.
        sampling: how solutions are drawn.
        budgets: N, in rising order.
        strategies: besides the votes over samples.
        difficulty_samples: drawn apart from all others to estimate difficulty.
        bins: of difficulty.
        larger: models to compare with by name, greedy, at equal FLOPs.
        ratios: R, tokens of inference for each of pretraining.
        resamples: of the bootstrap over questions.
        seed: of everything drawn, and of the bootstrap.

    Raises:
        UserError: there are no such problems, or fewer than two a bin.
    """
    run_dir = Path(run_dir)
    if sources:
        corpus.run(run_dir=run_dir, sources=sources)
    models = Models(generator, scorer, sampling)
    tasks = [
        *_samples(models, budgets, difficulty_samples, seed),
        *_greedy(
            {GREEDY: generator, **{f"{GREEDY}/{name}": each for name, each in larger.items()}},
            sampling,
        ),
        *_searches(strategies, budgets, models, seed),
    ]
    settings = {
        **{"generator": generator, "scorer": scorer, "splits": splits, "limit": limit},
        **{"prompt": prompt, "sampling": sampling, "budgets": budgets, "bins": bins},
        **{"strategies": strategies, "difficulty_samples": difficulty_samples, "seed": seed},
        **{"larger": larger, "ratios": ratios, "resamples": resamples},
    }
    with Stage.open(
        run_dir, "scale", settings=settings, inputs=["problems"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        asked = _chosen(run_dir, splits, limit, 2 * bins)
        shards = Shards(run_dir / "scale", Answered)
        for task in tasks:
            _fill(shards, task, asked, prompt)
        how = analysis.How(tuple(budgets), bins, tuple(ratios), resamples, seed)
        records = Records.of(shards, asked)
        eases = _eases(records, asked, difficulty.local(generator), prompt)
        shapes = Shapes(
            _shape(generator),
            _judge(scorer),
            {f"{GREEDY}/{name}": _shape(each) for name, each in larger.items()},
        )
        found, policies = analysis.found(records, eases, shapes, how)
        _write(run_dir / "reports", found, policies)
        stage.finish(questions=len(asked), records=len(shards), **analysis.headline(found))
        return stage.summary


def _samples(models: Models, budgets: Sequence[int], apart: int, seed: int) -> Iterator[Task]:
    """Yield the samples that estimate difficulty and those that vote, drawn apart."""
    yield Task(DIFFICULTY, BestOf(), apart, models, seed + 1)
    yield Task(SAMPLES, BestOf(), max(budgets), models, seed)


def _greedy(generators: dict[str, Generator], sampling: Sampling) -> Iterator[Task]:
    cold = dataclasses.replace(sampling, temperature=0.0)
    single = BestOf(strategy.majority, scored=False)
    for name, generator in generators.items():
        yield Task(name, single, 1, Models(generator, None, cold), 0)


def _searches(
    strategies: Sequence[Strategy], budgets: Sequence[int], models: Models, seed: int
) -> Iterator[Task]:
    for solving, budget in itertools.product(strategies, budgets):
        if budget >= solving.least:
            yield Task(solving.name, solving, budget, models, seed)


def _chosen(run_dir: Path, splits: Sequence[str], limit: int | None, least: int) -> list[Problem]:
    """Return the first problems of each set, set by set."""
    by_set: dict[str, list[Problem]] = {}
    for problem in Shards(run_dir / "problems", Problem):
        if problem.split in splits:
            by_set.setdefault(problem.source, []).append(problem)
    chosen = [problem for of_set in by_set.values() for problem in of_set[:limit]]
    if len(chosen) < least:
        raise UserError(
            f"at least {least} problems of {', '.join(splits)}", str(len(chosen)), "add some"
        )
    return chosen


def _fill(
    shards: Shards[Answered],
    task: Task,
    problems: Sequence[Problem],
    prompt: Callable[[str], str],
) -> None:
    """Ask what is missing of a task, so many questions at once that a shard is worth writing."""
    done = shards.keys("strategy", "budget", "problem_id")
    left = [p for p in problems if (task.name, task.budget, p.problem_id) not in done]
    size = max(SHARD_SOLUTIONS // task.budget, 1)
    total = len(problems)
    bar = progress(
        strategy.chunks(left, size),
        name=f"{task.name} at {task.budget}",
        total=-(-total // size),
        done=(total - len(left)) // size,
        unit="shards",
    )
    for chunk in bar:
        shards.append(answered(task, chunk, prompt))


def _shape(model: object) -> Config | None:
    """Return the shape of a generator in this process; None for an endpoint."""
    local = difficulty.local(model)
    return local.network.config if local else None


def _judge(scorer: Scorer) -> ScoringModel | None:
    """Return the model of a scorer in this process, whose shape tells its cost."""
    local = scorer.scorer if isinstance(scorer, Verifier) else scorer
    return local.network if isinstance(local, LocalScorer) else None


def _eases(
    records: Records,
    problems: Sequence[Problem],
    local: LocalGenerator | None,
    prompt: Callable[[str], str],
) -> analysis.Eases:
    """Return what each estimate of difficulty says of each question, and what it cost."""
    oracle, predicted = outcomes.sampled_eases(records)
    if local is None or not isinstance(local.network, T5Model):
        return analysis.Eases({"oracle": oracle, "predicted": predicted})
    prompts = [prompt(problem.question) for problem in problems]
    states, read = difficulty.encoder_means(local, prompts)
    ids = [problem.problem_id for problem in problems]
    fold_of = allocate.folds(ids, np.zeros(len(ids), int), count=5)
    encoder = difficulty.cross_fitted(states, oracle, fold_of)
    flops = np.array([ledger.encoder_flops(local.network.config, count) for count in read], float)
    estimator = difficulty.ridge(states, oracle)
    eases = {"oracle": oracle, "predicted": predicted, "encoder": encoder}
    return analysis.Eases(eases, flops, estimator)


def _write(directory: Path, found: dict[str, Any], policies: Mapping[str, allocate.Policy]) -> None:
    with atomic_path(directory / "scale.md") as path:
        path.write_text("\n".join(tables.markdown(found)) + "\n", encoding="utf-8")
    for kind, policy in policies.items():
        policy.save(directory / f"scale-policy-{kind}.json")
    write_json(directory / "scale.json", found)
