"""The study of compute at test time: run every strategy at every budget, record and report.

This module writes the records, and a study that was killed resumes with those that are missing.
`analysis` computes the report from them.
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
from distill.core.statistics import Bootstrap
from distill.core.store import Shards, Stage, atomic_path, write_json
from distill.models.sampling import LocalGenerator
from distill.models.scoring import LocalScorer, ScoringModel, Verifier
from distill.models.t5 import T5Model
from distill.problems import problems as corpus
from distill.test_time import allocate, analysis, difficulty, ledger, outcomes, tables
from distill.test_time.ledger import Config
from distill.test_time.outcomes import DIFFICULTY, GREEDY, SAMPLES, Records, Shapes
from distill.test_time.search import BestOf, LookAhead
from distill.test_time.strategy import Models, Question, Strategy, chunks, majority
from distill.text.prompts import FORMATS

logger = logging.getLogger(__name__)

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("scale", "reports/scale*")
SEARCHES = (
    LookAhead(),
    LookAhead(4),
    LookAhead(ahead=1),
    LookAhead(ahead=3),
    LookAhead(4, ahead=3),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A strategy to run at a budget, and the name of its records."""

    name: str
    strategy: Strategy
    budget: int
    models: Models
    seed: int


def answer(task: Task, problems: Sequence[Problem], prompt: Callable[[str], str]) -> list[Answered]:
    """Return the records of a task on some problems, in their order."""
    questions = [Question(problem.problem_id, prompt(problem.question)) for problem in problems]
    results = task.strategy.solve(questions, task.budget, task.models, seed=task.seed)
    return [
        outcomes.record(task.name, task.budget, problem, solved)
        for problem, solved in zip(problems, results, strict=True)
    ]


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
    shard_solutions: int = 8192,
) -> dict[str, Any]:
    """Run the study of compute at test time; resume where an earlier run stopped.

    Fills RUN_DIR/scale with a record for each strategy, budget and problem and writes
    RUN_DIR/reports/scale.json, scale.md and the policies scale-policy-*.json for `distill answer`;
    the run's report draws the curves. Votes over samples are read off the samples of the largest
    budget, in expectation over their subsets; every other strategy is run at every budget that it
    accepts.

    Args:
        run_dir: the run directory; its stage `problems` is complete where there are no sources.
        generator: draws solutions.
        scorer: the verifier.
        sources: what to fill RUN_DIR/problems from, if it is not filled.
        splits: of the problems to solve; the verifier must not have been trained on them.
        limit: most problems of a set; all where None.
        prompt: a question's prompt.
        sampling: how solutions are drawn.
        budgets: N, in rising order.
        strategies: besides the votes over samples.
        difficulty_samples: drawn apart from all others to estimate difficulty.
        bins: of difficulty.
        larger: models by name to compare with, greedy, at equal FLOPs.
        ratios: R, tokens of inference for each of pretraining.
        resamples: of the bootstrap over questions.
        seed: of everything drawn, and of the bootstrap.
        shard_solutions: drawn together, enough that chains of a whole budget fill a batch; a kill
            loses at most so many. Not a setting of the run: it does not change the records.

    Raises:
        UserError: there are no such problems, or fewer than two a bin.
    """
    run_dir = Path(run_dir)
    if sources:
        corpus.run(run_dir=run_dir, sources=sources)
    models = Models(generator, scorer, sampling)
    rivals = {f"{GREEDY}/{name}": each for name, each in larger.items()}
    tasks = [
        *_samples(models, budgets, difficulty_samples, seed),
        *_greedy({GREEDY: generator, **rivals}, sampling),
        *_searches(strategies, budgets, models, seed),
    ]
    settings = {
        "generator": generator,
        "scorer": scorer,
        "splits": splits,
        "limit": limit,
        "prompt": prompt,
        "sampling": sampling,
        "budgets": budgets,
        "bins": bins,
        "strategies": strategies,
        "difficulty_samples": difficulty_samples,
        "seed": seed,
        "larger": larger,
        "ratios": ratios,
        "resamples": resamples,
    }
    with Stage.open(
        run_dir, "scale", settings=settings, inputs=["problems"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        problems = _select(run_dir, splits, limit, 2 * bins)
        shards = Shards(run_dir / "scale", Answered)
        for task in tasks:
            _fill(shards, task, problems, prompt, shard_solutions)
        options = analysis.Options(tuple(budgets), bins, tuple(ratios), Bootstrap(resamples, seed))
        records = Records.of(shards, problems)
        eases = _eases(records, problems, difficulty.local(generator), prompt)
        shapes = Shapes(
            _shape(generator),
            _scoring_model(scorer),
            {name: _shape(each) for name, each in rivals.items()},
        )
        content, policies = analysis.analyse(records, eases, shapes, options)
        _write(run_dir / "reports", content, policies)
        stage.finish(questions=len(problems), records=len(shards), **analysis.headline(content))
        return stage.summary


def _samples(models: Models, budgets: Sequence[int], apart: int, seed: int) -> Iterator[Task]:
    """Yield the task of the samples that estimate difficulty, and of those that vote."""
    yield Task(DIFFICULTY, BestOf(), apart, models, seed + 1)
    yield Task(SAMPLES, BestOf(), max(budgets), models, seed)


def _greedy(generators: dict[str, Generator], sampling: Sampling) -> Iterator[Task]:
    cold = dataclasses.replace(sampling, temperature=0.0)
    single = BestOf(majority, scored=False)
    for name, generator in generators.items():
        yield Task(name, single, 1, Models(generator, None, cold), 0)


def _searches(
    strategies: Sequence[Strategy], budgets: Sequence[int], models: Models, seed: int
) -> Iterator[Task]:
    for strategy, budget in itertools.product(strategies, budgets):
        if budget >= strategy.least:
            yield Task(strategy.name, strategy, budget, models, seed)


def _select(run_dir: Path, splits: Sequence[str], limit: int | None, least: int) -> list[Problem]:
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
    shard_solutions: int,
) -> None:
    """Run a task on the problems that have no record, `shard_solutions` solutions at a time."""
    done = shards.keys("strategy", "budget", "problem_id")
    left = [p for p in problems if (task.name, task.budget, p.problem_id) not in done]
    size = max(shard_solutions // task.budget, 1)
    total = len(problems)
    bar = progress(
        chunks(left, size),
        name=f"{task.name} at {task.budget}",
        total=-(-total // size),
        done=(total - len(left)) // size,
        unit="shards",
    )
    for chunk in bar:
        shards.append(answer(task, chunk, prompt))


def _shape(model: object) -> Config | None:
    """Return the shape of a generator in this process; None for an endpoint."""
    local = difficulty.local(model)
    return local.network.config if local else None


def _scoring_model(scorer: Scorer) -> ScoringModel | None:
    """Return the model of a scorer in this process, from whose shape FLOPs are counted."""
    local = scorer.scorer if isinstance(scorer, Verifier) else scorer
    return local.network if isinstance(local, LocalScorer) else None


def _eases(
    records: Records,
    problems: Sequence[Problem],
    local: LocalGenerator | None,
    prompt: Callable[[str], str],
) -> analysis.Eases:
    """Return the ease of each question by each estimate, and the FLOPs of `encoder`."""
    oracle, predicted = outcomes.sampled_eases(records)
    if local is None or not isinstance(local.network, T5Model):
        return analysis.Eases({"oracle": oracle, "predicted": predicted})
    prompts = [prompt(problem.question) for problem in problems]
    states, read = difficulty.encoder_means(local, prompts)
    ids = [problem.problem_id for problem in problems]
    fold_of = allocate.folds(ids, np.zeros(len(ids), int), count=5)
    encoder = difficulty.cross_fit(states, oracle, fold_of)
    flops = np.array([ledger.encoder_flops(local.network.config, count) for count in read], float)
    estimator = difficulty.ridge(states, oracle)
    eases = {"oracle": oracle, "predicted": predicted, "encoder": encoder}
    return analysis.Eases(eases, flops, estimator)


def _write(
    directory: Path, content: dict[str, Any], policies: Mapping[str, allocate.Policy]
) -> None:
    with atomic_path(directory / "scale.md") as path:
        path.write_text("\n".join(tables.markdown(content)) + "\n", encoding="utf-8")
    for kind, policy in policies.items():
        policy.save(directory / f"scale-policy-{kind}.json")
    write_json(directory / "scale.json", content)
