"""`python -m tokalign show|report|bench`: show an alignment, count positions, measure speed."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tokalign.apis import from_completions, from_openai_chat
from tokalign.project import RULES, project, project_batch
from tokalign.report import alignment_page, alignment_text, coverage, traces_text
from tokalign.teacher import TeacherTrace
from tokalign.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)


def load_tokenizer(source: str) -> Tokenizer:
    """Load a vocabulary; the form of its source decides the kind.

    Args:
        source: a `.model` (SentencePiece), a `.tiktoken` or an encoding's name, a
            `tokenizer.json` or a directory that holds one.
    """
    path = pathlib.Path(source)
    if path.suffix == ".model":
        return SentencePieceTokenizer(source)
    if path.suffix == ".json" or path.is_dir():
        return HuggingFaceTokenizer(source)
    return TiktokenTokenizer(source)


def read_traces(path: pathlib.Path, tokenizer: Tokenizer | None) -> Iterator[TeacherTrace]:
    """Read a trace a line: `{"content": [...]}` of a chat, or `logprobs` of a completion.

    Raises:
        ValueError: a line that is neither, with its number.
    """
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            entry = json.loads(line)
            if "content" in entry:
                yield from_openai_chat(entry["content"], tokenizer=tokenizer)
            elif "tokens" in entry:
                yield from_completions(entry, tokenizer=tokenizer)
            else:
                raise ValueError(
                    f"expected content or tokens in line {number} of {path}, got {sorted(entry)}"
                )


def read_texts(paths: Sequence[pathlib.Path], field: str) -> list[str]:
    """Read texts: a field of each line of a `.jsonl`, any other file whole."""
    texts: list[str] = []
    for path in paths:
        if path.suffix == ".jsonl":
            texts += [json.loads(line)[field] for line in path.read_text().splitlines() if line]
        else:
            texts.append(path.read_text())
    return texts


def show(options: argparse.Namespace) -> str:
    """Show one trace in the terminal, and write its page."""
    student = load_tokenizer(options.student)
    teacher = load_tokenizer(options.teacher) if options.teacher else None
    traces = list(read_traces(options.traces, teacher))
    if not 0 <= options.number < len(traces):
        raise ValueError(f"expected a number below {len(traces)}, got {options.number}")
    trace = traces[options.number]
    projection = project(trace, student, rule=options.rule)
    if options.html:
        partial = options.html.with_suffix(".partial")
        with partial.open("w") as page:
            page.write(alignment_page(trace, projection, student))
            page.flush()
            os.fsync(page.fileno())
        partial.rename(options.html)
    return alignment_text(trace, projection, student)


def report(options: argparse.Namespace) -> str:
    """Count the projected positions of a file of traces by kind."""
    student = load_tokenizer(options.student)
    teacher = load_tokenizer(options.teacher) if options.teacher else None
    traces = list(read_traces(options.traces, teacher))
    projections = list(
        project_batch(traces, student, rule=options.rule, processes=options.processes)
    )
    if not options.json:
        return traces_text(traces, projections, student)
    everywhere, digits = coverage(projections, student)
    found: dict[str, Any] = {"traces": len(traces), "positions": everywhere.count}
    return json.dumps(found | {"all": everywhere.shares(), "digits": digits.shares()}, indent=1)


def bench(options: argparse.Namespace) -> str:
    """Measure speed and quality on texts."""
    from tokalign.bench import known_quality, measure, table

    teacher, student = load_tokenizer(options.teacher), load_tokenizer(options.student)
    texts = read_texts(options.texts, options.field)[: options.limit]
    found = measure(texts, teacher, student, plain=options.plain)
    found["quality"] = known_quality(teacher, student)
    return json.dumps(found, indent=1) if options.json else table(found)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="python -m tokalign", description=__doc__)
    commands = top.add_subparsers(required=True)
    for run in (show, report, bench):
        summary = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(run.__name__, help=summary, description=summary)
        command.set_defaults(run=run)
        command.add_argument("--student", required=True, help=".model, tokenizer.json or encoding")
        command.add_argument("--teacher", required=run is bench, help="likewise, for token_id:N")
        if run is not bench:
            command.add_argument("traces", type=pathlib.Path, help="JSON lines of API answers")
            command.add_argument("--rule", choices=RULES, default="marginal")
        if run is not show:
            command.add_argument("--json", action="store_true", help="for machines")
    show_command, report_command, bench_command = (
        commands.choices[name] for name in ("show", "report", "bench")
    )
    show_command.add_argument("--number", type=int, default=0, help="which trace, from 0")
    show_command.add_argument("--html", type=pathlib.Path, help="write a page here")
    report_command.add_argument("--processes", type=int, default=1)
    bench_command.add_argument("texts", type=pathlib.Path, nargs="+", help=".jsonl or text files")
    bench_command.add_argument("--field", default="answer", help="of each line of a .jsonl")
    bench_command.add_argument("--limit", type=int, default=1000, help="texts at most")
    bench_command.add_argument("--plain", type=int, default=200, help="texts for the plain DTW")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and print its result."""
    options = parser().parse_args(arguments)
    sys.stdout.write(options.run(options) + "\n")


if __name__ == "__main__":
    main()
