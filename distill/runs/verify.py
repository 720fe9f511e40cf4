"""Check that a run directory is whole: manifests, shards, keys, checkpoints and export."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Print what a run directory holds and a line for each fault.

    Returns:
        0 where it is sound, 2 where it has a fault.

    Raises:
        UserError: there is no run in the directory.
    """
    options = _parser().parse_args(arguments)
    from distill.core import terminal
    from distill.runs import soundness

    found = soundness.check(options.run_dir, contents=not options.checksums)
    text = json.dumps(found.as_json(), indent=1) if options.json else "\n".join(found.lines())
    terminal.show(text)
    return 0 if found.sound else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill verify",
        description=__doc__,
        epilog="Exits with 0 where the run is sound and with 2 where it has a fault. What no "
        "checksum stands for is named as not covered. Checksums show damage; whoever can write to "
        "the run directory can also make them anew.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what `distill run` made")
    parser.add_argument(
        "--checksums", action="store_true", help="compare checksums alone, read no records"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser
