"""Check a run directory: manifests, shards, keys, checkpoints and export."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Print the contents of a run directory and a line for each fault.

    Returns:
        0 if it is sound, 2 if it has a fault.

    Raises:
        UserError: there is no run in the directory.
    """
    options = _parser().parse_args(arguments)
    from distill.core import terminal
    from distill.runs import soundness

    result = soundness.check(options.run_dir, contents=not options.checksums)
    text = json.dumps(result.as_json(), indent=1) if options.json else "\n".join(result.lines())
    terminal.show(text)
    return 0 if result.sound else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill verify",
        description=__doc__,
        epilog="Exits with 0 if the run is sound and with 2 if it has a fault. Files that no "
        "checksum covers are listed as not covered. Checksums detect damage, not tampering: a user "
        "with write access to the run directory can also rewrite the checksums.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of `distill run`")
    parser.add_argument(
        "--checksums", action="store_true", help="compare checksums only, read no records"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
