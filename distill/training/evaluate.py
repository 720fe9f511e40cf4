"""Answers of checkpoints to problems, graded and counted; `select` chooses a checkpoint."""

import contextlib
import dataclasses
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request, Sampling
from distill.core.progress import progress
from distill.core.records import Accuracy, Prediction, Problem, Trace, Verdict
from distill.core.store import Shards, Stage, manifest
from distill.grading import graders
from distill.grading.check import Judge, check
from distill.text import prompts
from distill.text.completions import cut_after_answer
from distill.traces.harvest import sample_seed
from distill.training import choice

logger = logging.getLogger(__name__)

# What steers the choice of a checkpoint, and what is reported of the chosen one.
STEERING = ("validation", "selection")
REPORTED = ("report", "test")
SHARD_PREDICTIONS = 256
GREEDY = Sampling(temperature=0.0, top_logprobs=0)
_FINISHED = ("right", "wrong", "undecided", "unparsed")

Prompt = Callable[[Problem], str]
Wrap = Callable[[Generator], Generator]


def _require(what: str, known: Collection[str], name: str) -> None:
    if name not in known:
        raise UserError(f"a {what} of {', '.join(known)}", name, "name one of them")


@dataclasses.dataclass(frozen=True)
class SetOptions:
    """The prompt format and the graders of one set, in place of those of `Options`.

    Attributes:
        format: one of `prompts.FORMATS`, or a function from a problem to its prompt, such as
            `bbh.PublishedPrompt`; that of `Options` if None.
        grader: one of `graders.NAMES`; that of `Options` if None.
        beside: a second grader, whose right answers are counted beside the first's.
    """

    format: str | Prompt | None = None
    grader: str | None = None
    beside: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.format, str):
            _require("format", prompts.FORMATS, self.format)
        for name in filter(None, (self.grader, self.beside)):
            graders.require(name)


@dataclasses.dataclass(frozen=True)
class Voting:
    """Self-consistency: several samples a problem, of which the answer given most often counts.

    Answers are one where the grader's keys are. Samples without an answer have no vote; of answers
    with as many votes the one that came first, by sample, is taken.

    Attributes:
        samples: votes a problem.
        temperature: of the samples, above 0.
        top_p: nucleus mass kept, 1 keeps all.
        seed: from which each sample's own is derived.

    Source: Wang et al. 2022, arXiv 2203.11171; without its sum of normalised probabilities, which
    it found to be no better than the plain count.
    """

    samples: int = 8
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature <= 0:
            raise UserError(
                "samples of at least 1 and a temperature above 0",
                f"{self.samples} and {self.temperature}",
                "correct evaluate.Voting",
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """How the stages `evaluate` and `final` prompt, decode and grade; one binding serves both.

    Attributes:
        format: the prompt format, one of `prompts.FORMATS`.
        grader: one of `graders.NAMES`.
        max_tokens: most tokens of an answer.
        batch_size: problems decoded together; it changes no answer.
        limit: most problems of a set; all if None.
        set_options: by set, the format and the graders that replace these.
        voting: how many samples of a problem vote; greedy decoding if None.
        wrap: from a checkpoint's generator to the one that answers, such as
            `calculator.Calculator()` or `sampling.Beam()`.
        tensor: devices that share a copy of the parameters, for students too large for one.
        shard_predictions: most predictions in one shard, which a kill may lose.

    Raises:
        UserError: there is no such format or grader, or `max_tokens` or `limit` is below 1.
    """

    format: str = "zero_shot_cot"
    grader: str = "default"
    max_tokens: int = 256
    batch_size: int = 64
    limit: int | None = None
    set_options: Mapping[str, SetOptions] = dataclasses.field(default_factory=dict)
    voting: Voting | None = None
    wrap: Wrap | None = None
    tensor: int = 1
    shard_predictions: int = SHARD_PREDICTIONS

    def __post_init__(self) -> None:
        _require("format", prompts.FORMATS, self.format)
        graders.require(self.grader)
        if self.max_tokens < 1 or (self.limit is not None and self.limit < 1):
            raise UserError(
                "max_tokens and limit of at least 1",
                f"max_tokens {self.max_tokens} and limit {self.limit}",
                "raise them or leave them out",
            )

    def settings(self) -> dict[str, Any]:
        """Return what decides an answer, for a manifest; optional settings only if they are set."""
        required = ("format", "grader", "max_tokens", "limit")
        optional = ("set_options", "voting", "wrap")
        values = {name: getattr(self, name) for name in (*required, *optional)}
        return {name: value for name, value in values.items() if value or name in required}

    def grader_names(self) -> set[str]:
        """Return the names of all graders that the sets need."""
        named = (name for s in self.set_options.values() for name in (s.grader, s.beside) if name)
        return {self.grader, *named}


_DEFAULTS = Options()


def evaluate(
    problems: Sequence[Problem],
    generator: Generator,
    *,
    format: Prompt,
    grader: Judge,
    graders: Mapping[str, Judge] | None = None,
    sampling: Sampling = GREEDY,
    voting: Voting | None = None,
    step: int = 0,
) -> Iterator[Prediction]:
    """Answer every problem; cut and grade the answers as a teacher's traces are.

    A prediction depends on its problem, the generator, the sampling and the voting alone.

    Args:
        problems: to be answered.
        generator: the model that answers.
        format: a problem's prompt.
        grader: finds an answer and compares it with the gold one.
        graders: other graders, by set.
        sampling: greedy by default; with voting, its temperature and top_p are the voting's.
        voting: how many samples vote; each problem has one answer if None.
        step: the checkpoint that the generator runs.

    Returns:
        One prediction for each problem, in the order in which they finish.

    Example:
        >>> from distill.grading.graders import GRADERS
        >>> from distill.models.saved import SavedModel
        >>> from distill.text.prompts import FORMATS
        >>> problem = Problem("mine/1", "mine", "test", "What is 4 + 4?", "8")
        >>> student = SavedModel("data/models/student_instructed", batch_size=1)
        >>> zero_shot = FORMATS["zero_shot_cot"]
        >>> (prediction,) = evaluate([problem], student, grader=GRADERS["default"],
        ...                          format=lambda problem: zero_shot(problem.question))
        >>> prediction.problem_id
        'mine/1'
    """
    seeds = _seeds(voting)
    requests = [Request(format(p), seed) for p in problems for seed in seeds(p)]
    votes = voting.samples if voting else 1
    waiting: defaultdict[int, dict[int, Completion]] = defaultdict(dict)
    for index, completion in generator.generate(requests, _drawn(sampling, voting)):
        place, sample = divmod(index, votes)
        waiting[place][sample] = completion
        if len(waiting[place]) == votes:
            problem, samples = problems[place], waiting.pop(place)
            judge = (graders or {}).get(problem.source, grader)
            prompted = requests[place * votes : (place + 1) * votes]
            traces = [_trace(problem, n, prompted[n], samples[n]) for n in range(votes)]
            yield _prediction(problem, traces, judge, step)


def _seeds(voting: Voting | None) -> Callable[[Problem], list[int]]:
    if voting is None:
        return lambda problem: [0]
    samples = range(voting.samples)
    return lambda problem: [sample_seed(voting.seed, problem.problem_id, n) for n in samples]


def _drawn(sampling: Sampling, voting: Voting | None) -> Sampling:
    if voting is None:
        return sampling
    return dataclasses.replace(sampling, temperature=voting.temperature, top_p=voting.top_p)


def _trace(problem: Problem, sample: int, request: Request, completion: Completion) -> Trace:
    fields = cut_after_answer(completion).trace_fields()
    if completion.finish_reason == "too_long":
        logger.warning("%s is longer than the generator reads", problem.problem_id)
    return Trace(problem.problem_id, sample, request.prompt, **fields, model="", seed=request.seed)


def _prediction(problem: Problem, traces: Sequence[Trace], judge: Judge, step: int) -> Prediction:
    verdicts = list(check(traces, [problem], judge))
    chosen = majority(verdicts, judge)
    answer = (traces[chosen].text, verdicts[chosen].outcome, verdicts[chosen].answer)
    return Prediction(step, problem.problem_id, problem.source, problem.split, *answer)


def majority(verdicts: Sequence[Verdict], judge: Judge) -> int:
    """Return the place of the first sample that gives the answer given most often, 0 if none does.

    Example:
        >>> said = [Verdict("a", n, "wrong", answer, "") for n, answer in enumerate("878")]
        >>> majority(said, graders.GRADERS["default"])
        0
    """
    keys = [None if v.answer is None else judge.key(v.answer) for v in verdicts]
    votes = Counter(key for key in keys if key is not None)
    if not votes:
        return 0
    most = max(votes.values())
    return next(place for place, key in enumerate(keys) if key is not None and votes[key] == most)


def tally(predictions: Iterable[Prediction]) -> dict[int, dict[str, Accuracy]]:
    """Count right answers by step and set.

    Example:
        >>> tally([Prediction(0, "svamp/report/1", "svamp", "report", "It is 3", "right", "3")])
        {0: {'svamp': Accuracy(correct=1, n=1)}}
    """
    counts: dict[int, dict[str, Accuracy]] = {}
    for prediction in predictions:
        of_step = counts.setdefault(prediction.step, {})
        one = Accuracy(int(prediction.outcome == "right"), 1)
        before = of_step.get(prediction.source)
        of_step[prediction.source] = before + one if before else one
    return counts


def predict(
    problems: Sequence[Problem],
    steps: Sequence[int],
    generators: Callable[[int], Generator],
    sink: Shards[Prediction],
    *,
    shard_size: int = SHARD_PREDICTIONS,
    **arguments: Any,
) -> None:
    """Write the predictions of every step that are not in the sink yet.

    Args:
        problems: the same for every step.
        steps: the checkpoints.
        generators: from a checkpoint's step to its generator, called only if predictions are
            missing.
        sink: receives the predictions.
        shard_size: most predictions in one shard.
        arguments: the other arguments of `evaluate`.
    """
    done = sink.keys("step", "problem_id")
    for step in steps:
        left = [problem for problem in problems if (step, problem.problem_id) not in done]
        if not left:
            continue
        predictions = progress(
            evaluate(left, generators(step), step=step, **arguments),
            name=f"step {step}",
            total=len(problems),
            done=len(problems) - len(left),
            unit="problems",
        )
        while shard := list(itertools.islice(predictions, shard_size)):
            sink.append(shard)


def choose(
    problems: Iterable[Problem], splits: Sequence[str], limit: int | None = None
) -> list[Problem]:
    """Return the problems of some splits, the first `limit` of each set.

    Raises:
        UserError: there are none.
    """
    by_set: dict[str, list[Problem]] = {}
    for problem in problems:
        of_set = by_set.setdefault(problem.source, [])
        if problem.split in splits and (limit is None or len(of_set) < limit):
            of_set.append(problem)
    chosen = [problem for of_set in by_set.values() for problem in of_set]
    if not chosen:
        raise UserError(
            f"problems of split {' or '.join(splits)}", "none", "add such a set to stage problems"
        )
    return chosen


def prompt(name: str, train: Iterable[Problem]) -> Callable[[Problem], str]:
    """Return a format as a function from a problem to its prompt.

    The in-context formats show train problems, which a problem's id draws, so that a problem
    always has the same prompt.

    Args:
        name: one of `prompts.FORMATS`.
        train: problems for the demonstrations; a chain format takes those that have a chain.

    Raises:
        UserError: there is no such format, or too few problems to show.
    """
    _require("format", prompts.FORMATS, name)
    format = prompts.FORMATS[name]
    if not format.in_context:
        return format.encoder_input
    pool = [problem for problem in train if problem.chain or not format.chain]
    few = prompts.DEMONSTRATIONS
    if len({problem.question for problem in pool}) <= few:
        raise UserError(
            f"more than {few} train problems to show", str(len(pool)), "choose a zero-shot format"
        )
    return lambda problem: format.encoder_input(problem, prompts.draw(pool, problem, seed=0))


def students(
    run_dir: Path, batch_size: int, *, start: str | None = None, tensor: int = 1
) -> Callable[[int], Generator]:
    """Return the function from a step to its checkpoint's generator; all share one program.

    Args:
        run_dir: the run, whose checkpoints are taken; step 0 is the start itself.
        batch_size: problems decoded together.
        start: the directory of the start; the one that stage `train` recorded if None.
        tensor: devices that share a copy of the parameters.

    Raises:
        UserError: the start is missing, damaged or not the one that the run was trained from, or
            the run is not trained.
    """
    import jax

    from distill.models import weights
    from distill.models.saved import SavedModel
    from distill.training import initialise, origin
    from distill.training.checkpoints import load_params

    name = start or manifest(run_dir, "train")["settings"]["student"]
    directory = initialise.directory(run_dir, name)
    if (run_dir / "manifests" / "train.json").exists():
        origin.require(run_dir, directory, weights.read(directory)[2])
    loaded = SavedModel(str(directory), batch_size=batch_size, tensor=tensor).generator
    # Committed to a device as restored ones are: else the start has a program of its own.
    one = jax.local_devices()[0]
    params = loaded.placed if tensor > 1 else jax.device_put(loaded.params, one)
    first = dataclasses.replace(loaded, params=params)

    def of_step(step: int) -> Generator:
        if step == 0:
            return first
        trained = load_params(run_dir / "checkpoints", step, like=params)
        return dataclasses.replace(first, params=trained)

    return of_step


# --- The stages --------------------------------------------------------------------------------


def run(
    *, run_dir: Path, student: str | None = None, options: Options = _DEFAULTS
) -> dict[str, Any]:
    """Answer the validation sets and the selection halves with every checkpoint, step 0 included.

    In a run without training, a student that is named answers untrained, as step 0.

    Args:
        run_dir: the run.
        student: the directory of the start; the one that stage `train` recorded if None.
        options: how to prompt, decode and grade.

    Returns:
        `accuracy`, {step: {set: {"correct", "n"}}}, and the numbers of checkpoints and predictions;
        `accuracy_beside`, the same of second graders, if a set has one.

    Raises:
        UserError: no such set, no such problems, or an input is not complete.
    """
    return _stage(Path(run_dir), _EVALUATE, options, student)


def final(
    *, run_dir: Path, student: str | None = None, options: Options = _DEFAULTS
) -> dict[str, Any]:
    """Answer the report halves and test splits with the start and the chosen checkpoint.

    If validation would have chosen another checkpoint, that one answers too. In a run without
    training, a student that is named answers untrained, as step 0.

    Args:
        run_dir: the run.
        student: the directory of the start; the one that stage `train` recorded if None.
        options: how to prompt, decode and grade.

    Returns:
        As `run`.

    Raises:
        UserError: no such set, no such problems, or an input is not complete.
    """
    return _stage(Path(run_dir), _FINAL, options, student)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How the two stages differ: names, splits, inputs and the steps that answer."""

    name: str
    folder: str
    splits: Sequence[str]
    after: Sequence[str]
    steps: Callable[[Path], list[int]]


def _saved_steps(run_dir: Path) -> list[int]:
    from distill.training import checkpoints

    return sorted({0, *checkpoints.steps(run_dir / "checkpoints")})


def _chosen_steps(run_dir: Path) -> list[int]:
    selection = choice.read(run_dir)
    return sorted({0, *(selection[name] for name in choice.STEPS if name in selection)})


_EVALUATE = _Kind("evaluate", "predictions", STEERING, ["train"], _saved_steps)
_FINAL = _Kind("final", "final", REPORTED, ["train", "select"], _chosen_steps)
# The places of a run directory that each of the two stages fills, by the stage's name.
OUTPUTS = {kind.name: (kind.folder,) for kind in (_EVALUATE, _FINAL)}


def _stage(run_dir: Path, kind: _Kind, options: Options, student: str | None) -> dict[str, Any]:
    trained = student is None or (run_dir / "manifests" / "train.json").exists()
    settings = options.settings() | ({} if trained else {"student": student})
    inputs = ["problems", *(kind.after if trained else ())]
    reads = [student]
    with Stage.open(
        run_dir,
        kind.name,
        settings=settings,
        inputs=inputs,
        reads=reads,
        outputs=OUTPUTS[kind.name],
    ) as stage:
        if not stage.complete:
            steps = kind.steps(run_dir) if trained else [0]
            sink = Shards(run_dir / kind.folder, Prediction)
            generators = _generators(run_dir, student, options)
            stage.finish(**_fill(run_dir, sink, kind.splits, steps, generators, options))
        return stage.summary


def _generators(run_dir: Path, start: str | None, options: Options) -> Callable[[int], Generator]:
    plain = students(run_dir, options.batch_size, start=start, tensor=options.tensor)
    wrap = options.wrap
    return plain if wrap is None else lambda step: wrap(plain(step))


def _fill(
    run_dir: Path,
    sink: Shards[Prediction],
    splits: Sequence[str],
    steps: Sequence[int],
    generators: Callable[[int], Generator],
    options: Options,
) -> dict[str, Any]:
    """Write the missing predictions and count all of them."""
    every = list(Shards(run_dir / "problems", Problem))
    for name in options.set_options:
        _require("set", sorted({problem.source for problem in every}), name)
    with contextlib.ExitStack() as stack:
        judges = {
            name: stack.enter_context(graders.open_grader(name)) for name in options.grader_names()
        }
        predict(
            choose(every, splits, options.limit),
            steps,
            generators,
            sink,
            shard_size=options.shard_predictions,
            format=_prompts(options, [p for p in every if p.split == "train"]),
            grader=judges[options.grader],
            graders={s: judges[o.grader] for s, o in options.set_options.items() if o.grader},
            sampling=dataclasses.replace(GREEDY, max_tokens=options.max_tokens),
            voting=options.voting,
        )
        beside = {s: judges[o.beside] for s, o in options.set_options.items() if o.beside}
        again = tally(_graded_again(sink, every, beside))
    accuracy = tally(sink)
    for step, of_step in sorted(accuracy.items()):
        line = ", ".join(f"{name} {value}" for name, value in sorted(of_step.items()))
        logger.info("step %d: %s", step, line)
    return {
        "checkpoints": len(steps),
        "predictions": len(sink),
        "accuracy": _table(accuracy),
        **({"accuracy_beside": _table(again)} if again else {}),
    }


def _prompts(options: Options, train: Sequence[Problem]) -> Prompt:
    """Return the prompt of a problem by its set's format."""
    formats = {name: o.format for name, o in options.set_options.items() if o.format is not None}
    by_set = {name: prompt(f, train) if isinstance(f, str) else f for name, f in formats.items()}
    default = prompt(options.format, train)
    return lambda problem: by_set.get(problem.source, default)(problem)


def _graded_again(
    predictions: Iterable[Prediction], problems: Iterable[Problem], beside: Mapping[str, Judge]
) -> Iterator[Prediction]:
    """Yield the predictions of sets with a second grader, with its outcome."""
    graded = {problem.problem_id: problem for problem in problems if problem.source in beside}
    for prediction in predictions:
        if prediction.problem_id in graded:
            judge, outcome = beside[prediction.source], prediction.outcome
            if outcome in _FINISHED:
                gold = getattr(graded[prediction.problem_id], judge.field)
                outcome = judge(prediction.text, gold).outcome
            yield dataclasses.replace(prediction, outcome=outcome)


def _table(counted: Mapping[int, Mapping[str, Accuracy]]) -> dict[str, dict[str, Any]]:
    return {
        str(step): {name: dataclasses.asdict(value) for name, value in sorted(of_step.items())}
        for step, of_step in sorted(counted.items())
    }
