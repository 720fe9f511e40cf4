"""The built-in models on unseen built-in problems: the teacher's pass@k, the starts' accuracy.

    python benchmarks/builtin_models.py [--json]

Teacher: 200 `gsm` test problems, 40 samples each at temperature 0.7. Starts: greedy answers to 200
problems of each set, test splits and report halves alone. About five minutes on two CPU cores.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence

from distill.core.ports import Request, Sampling
from distill.core.records import Accuracy, Problem, Trace
from distill.grading.check import GRADERS, check
from distill.models.saved import SavedModel
from distill.problems.builtin import arithmetic
from distill.text import prompts
from distill.text.completions import cut_after_answer
from distill.training.evaluate import GREEDY, evaluate, prompt

TEACHER = "data/models/teacher"
STARTS = ("data/models/student_raw", "data/models/student_instructed")
TEMPERATURE = 0.7
MAX_TOKENS = 160


def pass_at(k: int, right: int, n: int) -> float:
    """Return the unbiased estimate of at least one right among k samples, seen n of them.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def mean(values: Sequence[float]) -> dict[str, float]:
    """Return the mean over problems with its 95 % interval, by the normal approximation."""
    centre = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": centre, "low": centre - half, "high": centre + half, "n": len(values)}


def share(accuracy: Accuracy) -> dict[str, float]:
    """Return a share with its Wilson interval."""
    low, high = accuracy.interval()
    return {"value": accuracy.value, "low": low, "high": high, "n": accuracy.n}


def right_texts(problems: Sequence[Problem], samples: int) -> list[list[str]]:
    """Return the texts of each problem's right samples."""
    teacher = SavedModel(TEACHER, batch_size=256)
    ask = prompts.TeacherPrompt()
    requests = [
        Request(ask(problem.question), seed=number * samples + sample)
        for number, problem in enumerate(problems)
        for sample in range(samples)
    ]
    sampling = Sampling(TEMPERATURE, MAX_TOKENS, top_logprobs=0)
    found: list[list[str]] = [[] for _ in problems]
    for index, completion in teacher.generate(requests, sampling):
        problem, asked = problems[index // samples], requests[index]
        written = cut_after_answer(completion).trace_fields()
        trace = Trace(problem.problem_id, 0, asked.prompt, **written, model="", seed=asked.seed)
        (verdict,) = check([trace], [problem], GRADERS["default"])
        if verdict.outcome == "right":
            found[index // samples].append(trace.text)
    return found


def of_teacher(n: int, samples: int) -> dict[str, dict[str, float]]:
    """Return pass@k and the numbers of distinct right texts, over the problems."""
    problems = list(arithmetic.problems("gsm", "test", n))
    texts = right_texts(problems, samples)
    distinct = [len(set(right)) for right in texts]
    return {
        "pass@1": mean([pass_at(1, len(right), samples) for right in texts]),
        f"pass@{samples}": share(Accuracy(sum(map(bool, texts)), n)),
        "distinct right wordings, mean": mean(distinct),
        "distinct right wordings, at least 2": share(Accuracy(sum(x > 1 for x in distinct), n)),
        "distinct right wordings, at least 5": share(Accuracy(sum(x > 4 for x in distinct), n)),
    }


def sets(n: int) -> Iterator[tuple[str, str, list[Problem]]]:
    """Yield the name, the format and the problems of everything that the starts are asked."""
    for family in (*arithmetic.FAMILIES, arithmetic.SINGLE_STEP, *arithmetic.GENERAL):
        split = arithmetic.splits(family)[-1]
        problems = list(arithmetic.problems(family, split, n))
        yield f"{family} {split}", "zero_shot_cot", problems
        if family in arithmetic.GENERAL:
            yield f"{family} {split}, answer only", "zero_shot_answer", problems


def of_start(path: str, n: int) -> dict[str, Accuracy]:
    """Return a start's greedy accuracy on each set."""
    start = SavedModel(path, batch_size=100)
    sampling = dataclasses.replace(GREEDY, max_tokens=MAX_TOKENS)
    how = {"grader": GRADERS["default"], "sampling": sampling}
    found = {}
    for name, format, problems in sets(n):
        asked = evaluate(problems, start, format=prompt(format, ()), **how)
        right = sum(prediction.outcome == "right" for prediction in asked)
        found[name] = Accuracy(right, len(problems))
    return found


def measure(n: int, samples: int) -> dict[str, object]:
    """Measure all; JSON-able."""
    begin = time.perf_counter()
    teacher = of_teacher(n, samples)
    starts = {path: of_start(path, n) for path in STARTS}
    return {
        "problems": n,
        "samples": samples,
        "temperature": TEMPERATURE,
        "teacher": teacher,
        "starts": {
            path: {name: dataclasses.asdict(value) for name, value in of_set.items()}
            for path, of_set in starts.items()
        },
        "seconds": time.perf_counter() - begin,
    }


def table(found: dict[str, object]) -> str:
    """Return the measured figures as Markdown."""
    lines = [
        f"| teacher, {found['samples']} samples a problem | mean [95 % interval] of n |",
        "|---|---|",
    ]
    for name, x in found["teacher"].items():
        percent = "mean" not in name
        scale, unit = (100, " %") if percent else (1, "")
        value, low, high = (scale * x[key] for key in ("value", "low", "high"))
        lines.append(f"| {name} | {value:.1f}{unit} [{low:.1f}, {high:.1f}] of {x['n']} |")
    names = [path.rpartition("/")[2] for path in found["starts"]]
    lines += ["", f"| greedy accuracy | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    first, *_ = found["starts"].values()
    for name in first:
        cells = [str(Accuracy(**of_set[name])) for of_set in found["starts"].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200, help="of each set")
    parser.add_argument("--samples", type=int, default=40, help="of the teacher for each problem")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.problems, options.samples)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
