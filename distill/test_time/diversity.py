"""Compare regular sampling and FIRE on problem sets, over a grid of truncations."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distill.core.errors import UserError
from distill.core.ports import Generator, Sampling
from distill.core.progress import progress
from distill.core.records import Problem, Trace
from distill.core.statistics import Bootstrap
from distill.core.store import Shards, Stage, atomic_path, write_json
from distill.grading.check import GRADERS, Grader, check
from distill.models.sampling import Fire
from distill.problems import problems as corpus
from distill.test_time.vote import some_right
from distill.text import answers
from distill.text.prompts import TeacherPrompt
from distill.traces.harvest import harvest

logger = logging.getLogger(__name__)

# Files and folders of a run directory that the stage fills, as patterns.
OUTPUTS = ("diversity", "reports/diversity*")
PASSES = (1, 5, 10, 20, 40)
ANSWERS, WORDINGS = "distinct answers", "distinct right texts"
KINDS = ("regular", "fire", "difference")
# Report halves and test splits are read by evaluate alone.
SPLITS = ("train", "validation", "selection")
Table = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One place of the grid, sampled in both ways.

    Example:
        >>> Setting(0.9, 16, 0.01).name
        'p0.9-k16-m0.01'
    """

    top_p: float
    top_k: int
    min_p: float

    @property
    def name(self) -> str:
        """The setting's name in folders and tables."""
        return f"p{self.top_p:g}-k{self.top_k}-m{self.min_p:g}"


def measures(samples: int) -> list[str]:
    """Return the names of the measures of a question, given its number of samples."""
    return [*(f"pass@{k}" for k in PASSES if k <= samples), ANSWERS, WORDINGS]


def measure(
    traces: Iterable[Trace], problems: Sequence[Problem], grader: Grader, samples: int
) -> np.ndarray:
    """Return float [question, measure] of a setting's traces, in the order of the problems.

    Answers are distinct by their canonical key, and texts without an answer add none; texts are
    distinct as they are written.

    Args:
        traces: `samples` of each problem, in any order.
        problems: the questions.
        grader: how an answer is found and compared.
        samples: number of samples of each problem.

    Raises:
        UserError: a trace's problem is not among the problems.
    """
    keys: dict[str, set[str]] = {problem.problem_id: set() for problem in problems}
    texts: dict[str, set[str]] = {problem.problem_id: set() for problem in problems}
    right = dict.fromkeys(keys, 0)
    read, judged = itertools.tee(traces)
    for trace, verdict in zip(read, check(judged, problems, grader), strict=True):
        if verdict.answer is not None:
            keys[trace.problem_id].add(answers.canonical(verdict.answer))
        if verdict.outcome == "right":
            right[trace.problem_id] += 1
            texts[trace.problem_id].add(trace.text)
    passes = [k for k in PASSES if k <= samples]
    rows = [
        [*(some_right(right[name], samples, k) for k in passes), len(keys[name]), len(texts[name])]
        for name in keys
    ]
    return np.array(rows, float)


def compare(
    regular: np.ndarray, fire: np.ndarray, samples: int, bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the estimates of both and of FIRE minus regular, paired by question."""
    both = zip(KINDS, (regular, fire, fire - regular), strict=True)
    names = measures(samples)
    return {kind: dict(zip(names, bootstrap.means(values), strict=True)) for kind, values in both}


# --- The stage ---------------------------------------------------------------------------------


def run(
    *,
    run_dir: Path,
    generator: Generator,
    sources: Sequence[corpus.Source] = (),
    splits: Sequence[str] = ("selection",),
    limit: int | None = None,
    samples: int = 40,
    sampling: Sampling = Sampling(top_logprobs=0),  # noqa: B008
    prompt: Callable[[str], str] = TeacherPrompt(),  # noqa: B008
    top_p: Sequence[float] = (0.7, 0.9),
    top_k: Sequence[int] = (16, 32),
    min_p: Sequence[float] = (0.0, 0.01),
    temperature: float = 30.0,
    grader: str = "default",
    resamples: int = 2000,
    seed: int = 0,
    shard_traces: int = 512,
) -> dict[str, Any]:
    """Compare regular sampling and FIRE over a grid; resume where an earlier run stopped.

    Fills RUN_DIR/diversity/SETTING-regular and SETTING-fire with traces and writes
    RUN_DIR/reports/diversity.json, diversity.md and a diversity-SET.png for each set. Both ways
    draw as many samples with the same seeds; FIRE's first token is drawn among the same top k.

    Args:
        run_dir: the run directory; its stage `problems` is complete where there are no sources.
        generator: one that has `fire`, as saved.SavedModel.
        sources: what to fill RUN_DIR/problems from, if it is not filled.
        splits: of the problems to solve: train, validation or selection.
        limit: most problems of a set; all where None.
        samples: number of samples a problem, in each setting and way.
        sampling: how tokens are drawn besides the grid's truncations.
        prompt: a question's prompt.
        top_p: the grid's nucleus masses.
        top_k: the grid's numbers of candidates.
        min_p: the grid's least shares of the likeliest candidate's probability.
        temperature: of FIRE's first token.
        grader: `default`, or `fu2023` for parity with the paper.
        resamples: of the bootstrap over questions.
        seed: of the samples and of the bootstrap.
        shard_traces: traces of a shard; a kill loses at most so many. Not a setting of the run: it
            does not change the traces.

    Raises:
        UserError: the generator has no FIRE, or there are no such problems or grader.
    """
    run_dir = Path(run_dir)
    _refuse(generator, splits, grader, samples)
    if sources:
        corpus.run(run_dir=run_dir, sources=sources)
    grid = list(itertools.starmap(Setting, itertools.product(top_p, top_k, min_p)))
    settings = {
        "generator": generator,
        "splits": splits,
        "limit": limit,
        "grid": grid,
        "temperature": temperature,
        "grader": grader,
        "resamples": resamples,
        "samples": samples,
        "sampling": sampling,
        "prompt": prompt,
        "seed": seed,
    }
    with Stage.open(
        run_dir, "diversity", settings=settings, inputs=["problems"], outputs=OUTPUTS
    ) as stage:
        if stage.complete:
            return stage.summary
        problems = _select(run_dir, splits, limit)
        values = {}
        for setting, kind in itertools.product(grid, ("regular", "fire")):
            shards = Shards(run_dir / "diversity" / f"{setting.name}-{kind}", Trace)
            fire = Fire(temperature, setting.top_k) if kind == "fire" else None
            model = dataclasses.replace(generator, fire=fire)  # pyright: ignore[reportArgumentType, reportCallIssue]
            cut = dataclasses.replace(sampling, **dataclasses.asdict(setting))
            draw_samples = functools.partial(
                harvest, problems, model, samples=samples, sampling=cut, prompt=prompt, seed=seed
            )
            _fill(shards, len(problems) * samples, draw_samples, shard_traces)
            values[setting, kind] = measure(shards, problems, GRADERS[grader], samples)
        content = _comparison(values, problems, samples, Bootstrap(resamples, seed))
        _write(run_dir / "reports", content)
        stage.finish(settings=len(content["settings"]), questions=content["questions"])
        return stage.summary


def _refuse(generator: Generator, splits: Sequence[str], grader: str, samples: int) -> None:
    fields = dataclasses.fields(generator) if dataclasses.is_dataclass(generator) else ()
    if "fire" not in {field.name for field in fields}:
        raise UserError(
            "a generator with FIRE, as saved.SavedModel", type(generator).__name__, "use one"
        )
    if wrong := [split for split in splits if split not in SPLITS]:
        raise UserError(f"splits of {', '.join(SPLITS)}", wrong[0], "leave the others to evaluate")
    if grader not in GRADERS:
        raise UserError(f"a grader of {', '.join(GRADERS)}", grader, "name one of them")
    if samples < 1:
        raise UserError("at least 1 sample", str(samples), "raise diversity.run.samples")


def _select(run_dir: Path, splits: Sequence[str], limit: int | None) -> list[Problem]:
    """Return the first problems of each set, set by set."""
    by_set: dict[str, list[Problem]] = {}
    for problem in Shards(run_dir / "problems", Problem):
        if problem.split in splits:
            by_set.setdefault(problem.source, []).append(problem)
    chosen = [problem for of_set in by_set.values() for problem in of_set[:limit]]
    if not chosen:
        raise UserError(f"problems of {', '.join(splits)}", "none", "add a source or a split")
    return chosen


def _fill(
    shards: Shards[Trace], total: int, draw_samples: Callable[..., Iterator[Trace]], size: int
) -> None:
    """Draw the samples that are not in the shards, of `total`."""
    done: set[Any] = shards.keys("problem_id", "sample")
    if len(done) == total:
        return
    bar = progress(
        draw_samples(done=done),
        name=shards.directory.name,
        total=total,
        done=len(done),
        unit="samples",
    )
    while shards.append(itertools.islice(bar, size)):
        pass
    logger.info("%s: %d samples", shards.directory.name, total)


def _comparison(
    values: Mapping[tuple[Setting, str], np.ndarray],
    problems: Sequence[Problem],
    samples: int,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    of_set = np.array([problem.source for problem in problems])
    sets = list(dict.fromkeys(of_set.tolist()))
    rows = []
    for setting in dict.fromkeys(setting for setting, _ in values):
        regular, fire = values[setting, "regular"], values[setting, "fire"]
        compared = {
            name: compare(
                regular[of_set == name],
                fire[of_set == name],
                samples,
                bootstrap,
            )
            for name in sets
        }
        rows.append({"name": setting.name, **dataclasses.asdict(setting), "sets": compared})
    questions = {name: int((of_set == name).sum()) for name in sets}
    counts = {
        "samples": samples,
        "questions": questions,
        "resamples": bootstrap.resamples,
        "seed": bootstrap.seed,
    }
    return {**counts, "settings": rows}


# --- The report --------------------------------------------------------------------------------


def _write(directory: Path, found: dict[str, Any]) -> None:
    for name in found["questions"]:
        with atomic_path(directory / f"diversity-{name}.png") as path:
            _picture(found, name).savefig(path, format="png", dpi=160, metadata={"Software": None})
    with atomic_path(directory / "diversity.md") as path:
        path.write_text("\n".join(markdown(found)) + "\n", encoding="utf-8")
    write_json(directory / "diversity.json", found)


def markdown(found: Table) -> Iterator[str]:
    """Yield the lines of a table for each set: both ways, then the difference with its interval.

    Args:
        found: the content of diversity.json.
    """
    last = max(k for k in PASSES if k <= found["samples"])
    names = list(dict.fromkeys(["pass@1", f"pass@{last}", ANSWERS, WORDINGS]))
    for name, questions in found["questions"].items():
        yield f"{name}: {questions} questions, {found['samples']} samples of each\n"
        yield f"| setting | {' | '.join(names)} |"
        yield f"|---|{'---|' * len(names)}"
        for row in found["settings"]:
            cells = (_cell(row["sets"][name], measure) for measure in names)
            yield f"| {row['name']} | {' | '.join(cells)} |"
        yield ""


def _cell(compared: Table, name: str) -> str:
    """Write `regular -> fire (difference [low, high])`, passes in percent."""
    scale, digits = (100, 1) if name.startswith("pass@") else (1, 2)
    regular, fire = (scale * compared[kind][name]["value"] for kind in ("regular", "fire"))
    d = {key: scale * value for key, value in compared["difference"][name].items()}
    interval = f"{d['value']:+.{digits}f} [{d['low']:+.{digits}f}, {d['high']:+.{digits}f}]"
    return f"{regular:.{digits}f} → {fire:.{digits}f} ({interval})"


def _picture(found: Table, name: str) -> Figure:
    """Draw pass@k over k, both ways with their intervals, one pair of axes a setting."""
    rows = found["settings"]
    columns = min(4, len(rows))
    figure = Figure((3 * columns, 2.6 * -(-len(rows) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        -(-len(rows) // columns), columns, sharex=True, sharey=True, squeeze=False
    )
    passes = [k for k in PASSES if k <= found["samples"]]
    for row, place in zip(rows, axes.flat, strict=False):
        for kind, colour in (("regular", "#0072B2"), ("fire", "#D55E00")):
            of_kind = [row["sets"][name][kind][f"pass@{k}"] for k in passes]
            ends = [[each[end] for each in of_kind] for end in ("low", "high")]
            place.plot(passes, [e["value"] for e in of_kind], "o-", color=colour, label=kind, ms=3)
            place.fill_between(passes, *ends, color=colour, alpha=0.15, linewidth=0)
        place.set_xscale("log")
        place.set_xticks(passes, [str(k) for k in passes], minor=False)
        place.minorticks_off()
        distinct = [row["sets"][name][kind][ANSWERS]["value"] for kind in ("regular", "fire")]
        place.set_title(f"{row['name']}: answers {distinct[0]:.2f} → {distinct[1]:.2f}", fontsize=8)
        place.grid(visible=True, linewidth=0.4)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{name}: pass@k over k samples", parse_math=False, fontsize=9)
    return figure
