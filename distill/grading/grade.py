r"""Grade completions against gold answers or tests: JSON lines in, the same with verdicts out.

    {"prediction": "3 + 4 = 7\nThe answer is 7.", "gold": "#### 7"}
 -> {..., "verdict": "right", "extracted": "7", "reason": "equals 7"}

Other keys stay; `verdict`, `extracted` and `reason` are overwritten where a row has them.
"""

import argparse
import codecs
import contextlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.core.errors import UserError

if TYPE_CHECKING:
    from distill.grading.graders import Grader, Judge

_GRADERS = """default; math, which adds algebra for undecided answers; mbpp for programs, with
"tests" instead of "gold"; exact and caseless for BIG-Bench Hard; fu2023 for parity"""
VERDICTS = ("right", "wrong", "undecided", "unparsed")


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with its name in errors.

    Lines of whitespace are skipped.

    Raises:
        UserError: there is no such file, or a line is no JSON object in UTF-8.
    """
    if not path.is_file():
        raise UserError(f"a file of JSON lines at {path}", "none", "name an existing file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                name = f"line {number} of {path.name}"
                yield name, _object(text, name)


def _object(line: bytes, name: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise UserError(f"JSON in UTF-8 on {name}", str(error), "mend the line") from error
    if not isinstance(row, dict):
        raise UserError(f"a JSON object on {name}", type(row).__name__, "mend the line")
    return row


def _refused(name: str) -> float:
    raise ValueError(f"{name}, which JSON has not")


def field(row: dict[str, Any], key: str, name: str) -> Any:
    """Return a row's value.

    Raises:
        UserError: the row has no such key.
    """
    if key not in row:
        raise UserError(f'"{key}" on {name}', f"only {', '.join(row) or 'nothing'}", "add it")
    return row[key]


def gold_of(row: dict[str, Any], name: str) -> str:
    r"""Return a row's gold answer: a number, an answer's text, or a solution that marks it.

    Args:
        row: an object with `gold`.
        name: the row's name in errors.

    Raises:
        UserError: there is no gold answer, or it is neither text nor a finite number.

    Example:
        >>> [gold_of({"gold": gold}, "row 1") for gold in ("7", 7.50, "3 + 4 = 7\n#### 7")]
        ['7', '7.5', '7']
    """
    from distill.text import answers

    value = field(row, "gold", name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"
    found = answers.marked(value) if isinstance(value, str) else None
    if not found:
        got = json.dumps(value)
        raise UserError(
            f"an answer or a number as gold on {name}", f"{got:.60}", "mend or drop the row"
        )
    return found


def text_of(row: dict[str, Any], key: str, name: str) -> str:
    """Return a row's text.

    Raises:
        UserError: it is missing or no text.
    """
    value = field(row, key, name)
    if not isinstance(value, str):
        got = json.dumps(value)
        raise UserError(f'text as "{key}" on {name}', f"{got:.60}", "mend or drop the row")
    return value


def grade_rows(
    named_rows: Iterable[tuple[str, dict[str, Any]]], grader: "Judge"
) -> Iterator[dict[str, Any]]:
    """Yield every row with its verdict, the extracted answer and the reason.

    Args:
        named_rows: objects with `prediction` and `gold`, or `tests` where these decide, each after
            its name in errors.
        grader: the judge of every row.

    Raises:
        UserError: a row lacks its prediction, its gold answer or its tests, or its tests cannot be
            read.

    Example:
        >>> from distill.grading.graders import GRADERS
        >>> row = {"prediction": "The answer is 6.", "gold": 7}
        >>> [graded] = grade_rows([("row 1", row)], GRADERS["default"])
        >>> graded["verdict"], graded["extracted"], graded["reason"]
        ('wrong', '6', 'gold is 7')
    """
    for name, row in named_rows:
        prediction = text_of(row, "prediction", name)
        tested = grader.field == "tests"
        gold = text_of(row, "tests", name) if tested else gold_of(row, name)
        try:
            judgement = grader(prediction, gold)
        except UserError as error:
            raise UserError(f"{error.expected} on {name}", error.got, error.do) from error
        outcome, answer, reason = judgement
        yield {**row, "verdict": outcome, "extracted": answer, "reason": reason}


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade a file; print the counts."""
    options = _parser().parse_args(arguments)
    from distill.core.store import atomic_path
    from distill.grading.graders import confinement, open_grader

    output = options.output or options.file.with_suffix(".graded.jsonl")
    if output.is_dir():
        raise UserError("a file as --output", f"the directory {output}", "name a file in it")
    counts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
    named_rows = rows(options.file)
    with contextlib.ExitStack() as stack:
        grader = stack.enter_context(open_grader(options.grader))
        file = stack.enter_context(stack.enter_context(atomic_path(output)).open("w"))
        for row in grade_rows(named_rows, grader):
            counts[row["verdict"]] += 1
            file.write(json.dumps(row) + "\n")
        confined = confinement(grader)
    result = {"rows": counts.total(), **counts, "grader": options.grader, "output": str(output)}
    if options.json:
        report = json.dumps({**result, **confined})
    else:
        report = _report(counts, output, confined)
    sys.stdout.write(report + "\n")
    return 0


def named_grader(name: str) -> "Grader":
    """Return a grader of answers that needs no process of its own, by its name.

    Raises:
        UserError: there is none of this name.
    """
    from distill.grading.graders import GRADERS

    if name not in GRADERS:
        raise UserError(f"a grader of {', '.join(GRADERS)}", name, "name one of them")
    return GRADERS[name]


def _report(counts: Counter[str], output: Path, confined: dict[str, list[str]]) -> str:
    from distill.core.records import Accuracy

    by_verdict = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    n = counts.total()
    share = f" ({Accuracy(counts['right'], n)} right)" if n else ""
    lines = [f"{n} rows: {by_verdict}{share}"]
    lines += [f"{name}: {', '.join(names)}" for name, names in confined.items() if names]
    return "\n".join([*lines, str(output)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill grade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help='JSON lines with "prediction" and "gold"')
    parser.add_argument("--grader", default="default", help=_GRADERS)
    parser.add_argument("--output", type=Path, help="where to; FILE.graded.jsonl by default")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    return parser
