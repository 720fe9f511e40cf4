"""Merge harvests of the same problems, made on separate file systems, into one run directory.

Each machine runs `distill problems` with the same file and then its own part of the harvest. Their
run directories are copied to one machine, for example with rsync, and merged; `distill harvest`
there, without a part, requests the traces that are still missing and finishes the stage.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.core.records import Trace
    from distill.core.store import Shards

Key = tuple[str, int]
LOG_NAME = re.compile(r"harvest(-\d+-of-\d+)?-[0-9a-f]{16}\.json")


def main(arguments: Sequence[str]) -> int:
    """Merge and print how many traces were added; return 0.

    Raises:
        UserError: a directory holds another harvest or none, or a harvest runs in INTO.
    """
    options = _parser().parse_args(arguments)
    from distill.core import terminal

    counts = merge(options.into, options.sources)
    terminal.show(json.dumps(counts))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("into", type=Path, metavar="INTO", help="a run directory with problems")
    parser.add_argument("sources", type=Path, nargs="+", metavar="FROM", help="others like it")
    return parser


def merge(into: Path, sources: Sequence[Path]) -> dict[str, int]:
    """Add other harvests' traces to one. Skips traces already merged; idempotent.

    A trace in several of them is taken once, from the first. The logs of spending are copied too.
    All sources are read and checked before anything is added.

    Args:
        into: a run directory whose problems are complete, with or without traces.
        sources: run directories with the same problems, harvested with the same settings; they
            stay as they are, and no link in them is followed.

    Returns:
        `added`: traces that were missing, `known`: those that were there or came twice.

    Raises:
        UserError: a directory holds another harvest or none, a trace is of another model, prompt or
            problem than its harvest asked, a link leads out of a directory, or a harvest runs in
            `into`.
    """
    from distill.core.records import Problem, Trace
    from distill.core.store import Shards, Stage
    from distill.traces.belonging import Belonging

    harvests = [_harvest_manifest(Path(source), into) for source in sources]
    settings = harvests[0]["settings"]
    for source, found in zip(sources, harvests, strict=True):
        _refuse_other(source, found, harvests[0])
    with Stage.open(into, "harvest", settings=settings, inputs=["problems"]):
        shards = Shards(into / "traces", Trace)
        belonging = Belonging(settings, Shards(into / "problems", Problem))
        for place in (into, *sources):
            for trace in Shards(place / "traces", Trace):
                belonging.require(trace, place)
        keys = {(str(name), int(n)) for name, n in shards.keys("problem_id", "sample")}
        counts = {"added": 0, "known": 0}
        for source in sources:
            _add(Shards(source / "traces", Trace), shards, keys, counts)
            _copy_spending(source, into)
    return counts


def _harvest_manifest(source: Path, into: Path) -> dict[str, Any]:
    """Return the manifest of a directory's harvest, or of a part of it; all parts are alike."""
    from distill.core import files
    from distill.core.errors import UserError
    from distill.core.records import Problem
    from distill.core.stages import read_manifest
    from distill.core.store import Shards

    files.require_plain(source)
    paths = sorted((source / "manifests").glob("harvest*.json"))
    if not paths:
        raise UserError(f"a harvest in {source}", "none", "name a run directory that was harvested")
    given, wanted = (list(Shards(path / "problems", Problem)) for path in (source, into))
    if given != wanted:
        raise UserError(
            f"the problems of {into} in {source}",
            "others",
            "run `distill problems` with the same file on each machine",
        )
    found = [read_manifest(path) for path in paths]
    for other in found[1:]:
        _refuse_other(source, other, found[0])
    return found[0]


def _refuse_other(source: Path, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a harvest with other settings, or whose models and files had another content."""
    from distill.core.errors import UserError

    given, wanted = got["settings"], expected["settings"]
    for name in sorted({*given, *wanted}):
        if given.get(name) != wanted.get(name):
            raise UserError(
                f"the harvest's {name}={wanted.get(name)!r:.80} in {source}",
                f"{given.get(name)!r:.80}",
                "merge harvests of one configuration",
            )
    read, others = expected.get("reads", {}), got.get("reads", {})
    for name in sorted(read.keys() & others):
        if read[name].get("sha256") != others[name].get("sha256"):
            raise UserError(
                f"a harvest in {source} with the same content of {name}",
                "one with another",
                "merge harvests of one model",
            )


def _add(
    source: "Shards[Trace]", shards: "Shards[Trace]", keys: set[Key], counts: dict[str, int]
) -> None:
    """Append each shard's traces that are not there yet, and count them."""
    for path in source.files():
        whole = list(source.read(path))
        missing = _missing(whole, keys)
        counts["added"] += shards.append(missing)
        counts["known"] += len(whole) - len(missing)


def _missing(traces: Iterable["Trace"], keys: set[Key]) -> list["Trace"]:
    """Return the traces whose keys are new, each once, and add the keys."""
    missing: list[Trace] = []
    for trace in traces:
        key = (trace.problem_id, trace.sample)
        if key not in keys:
            keys.add(key)
            missing.append(trace)
    return missing


def _copy_spending(source: Path, into: Path) -> None:
    """Copy each start's log; its name is the start's own, so copying again changes nothing."""
    from distill.core.errors import UserError
    from distill.core.store import write_json
    from distill.endpoints.spending import SPENT, read_log

    for path in sorted((source / SPENT).glob("*.json")):
        if not LOG_NAME.fullmatch(path.name):
            raise UserError(f"a start's file at {path}", "one of another name", "take it away")
        target, found = into / SPENT / path.name, read_log(path)
        # The one that counts more was copied later.
        if not target.exists() or read_log(target)["completions"] < found["completions"]:
            write_json(target, found)
