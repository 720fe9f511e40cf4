"""Compare the files of a run with the SHA-256 lists of its stages; reads no records."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.core import files, journal, stages, sums
from distill.core.errors import UserError
from distill.runs.layout import OUTPUTS

Manifests = Mapping[str, Mapping[str, Any]]
REPORT = "report"
REPORT_FILES = ("report.html", "report.json")
LOCATION = "checkpoints/location.txt"


@dataclasses.dataclass
class ChecksumReport:
    """The result of the comparison, one line for each entry.

    Attributes:
        faults: differences from the recorded files.
        notes: observations that are not faults.
        not_covered: files that no checksum covers.
    """

    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    not_covered: list[str] = dataclasses.field(default_factory=list)


def check(run_dir: Path, manifests: Manifests) -> ChecksumReport:
    """Compare every file of a run directory with the lists in `manifests/`.

    Args:
        run_dir: the run directory, without links in it.
        manifests: those of the stages, by name.
    """
    result = ChecksumReport()
    lists = _lists(run_dir, manifests, result)
    _check_chain(run_dir, manifests, lists, result)
    recorded = {name: digest for listed in lists.values() for name, digest in listed.items()}
    present = {path.relative_to(run_dir).as_posix(): path for path in files.walk(run_dir)}
    result.faults += [f"{name}: it is missing" for name in sorted(recorded.keys() - present)]
    for name in sorted(recorded.keys() & present):
        if files.sha256(present[name], follow=False) != recorded[name]:
            result.faults.append(f"{name}: its SHA-256 is not the recorded one")
    _check_config(run_dir, manifests, result)
    owners = _Owners(run_dir, manifests, lists)
    for name in sorted(present.keys() - recorded):
        _check_unlisted(name, present[name], owners, result)
    _note_external_checkpoints(run_dir, manifests, result)
    return result


# --- Lists -------------------------------------------------------------------------------------


def _lists(
    run_dir: Path, manifests: Manifests, result: ChecksumReport
) -> dict[str, dict[str, str]]:
    """Return the list of each stage that has one, and of the report."""
    lists = {}
    for name, manifest in manifests.items():
        if not manifest["complete"]:
            continue
        # One sign of a list is enough: a damaged field must not pass for an earlier version.
        if {"files", "version"} & manifest.keys() or sums.path_of(run_dir, name).exists():
            listed = _list(run_dir, name, result)
            if listed is not None and len(listed) - 1 != manifest.get("files"):
                got = f"{len(listed) - 1} files, the manifest counts {manifest.get('files')!r:.20}"
                result.faults.append(f"manifests/{name}.sha256: it lists {got}")
        else:
            listed = _earlier_list(name, manifest, result)
        lists |= {name: listed} if listed is not None else {}
    if any((run_dir / name).exists() for name in REPORT_FILES) and _records_versions(manifests):
        listed = _list(run_dir, REPORT, result)
        lists |= {REPORT: listed} if listed is not None else {}
    return lists


def _list(run_dir: Path, name: str, result: ChecksumReport) -> dict[str, str] | None:
    try:
        listed = sums.read(sums.path_of(run_dir, name))
    except UserError as error:
        result.faults.append(f"manifests/{name}.sha256: {error}")
        return None
    required = REPORT_FILES if name == REPORT else (f"manifests/{name}.json",)
    for file in required:
        if file not in listed:
            result.faults.append(f"manifests/{name}.sha256: {file} is not in it")
    return listed


def _earlier_list(
    name: str, manifest: Mapping[str, Any], result: ChecksumReport
) -> dict[str, str] | None:
    """Return the digests of shards that an earlier version wrote into the manifest."""
    shards = manifest.get("shards")
    if isinstance(shards, dict) and all(isinstance(each, str) for each in shards.values()):
        result.not_covered.append(f"{name}: files other than shards, written by an earlier version")
        return dict(shards)
    result.notes.append(f"{name}: no checksums were recorded")
    result.not_covered.append(f"{name}: an earlier version wrote it without checksums")
    return None


def _records_versions(manifests: Manifests) -> bool:
    return any("version" in manifest for manifest in manifests.values())


def _check_chain(
    run_dir: Path, manifests: Manifests, lists: Mapping[str, Any], result: ChecksumReport
) -> None:
    """Check that the lists of each stage's inputs are the lists that the stage read."""
    for name, manifest in manifests.items():
        made_from = manifest.get("made_from", {})
        for source in manifest.get("inputs", {}):
            path = sums.path_of(run_dir, source)
            if source not in lists or not path.exists() or "version" not in manifest:
                continue
            if files.sha256(path, follow=False) != made_from.get(source):
                result.faults.append(f"{name}: it was made from another {source}")


def _check_config(run_dir: Path, manifests: Manifests, result: ChecksumReport) -> None:
    path = run_dir / stages.CONFIG
    try:
        seals = journal.seals(journal.read(path), path)
    except UserError as error:
        result.faults.append(f"{stages.CONFIG}: {error}")
        return
    for name, manifest in manifests.items():
        if "config" in manifest and manifest["config"] not in seals:
            result.faults.append(f"{stages.CONFIG}: the configuration of stage {name} is not in it")
    if path.exists() and not seals:
        if _records_versions(manifests):
            result.faults.append(f"{stages.CONFIG}: it has no checksum")
        else:
            result.not_covered.append(f"{stages.CONFIG}: written by an earlier version")


# --- Files that no list names ------------------------------------------------------------------


class _Owners:
    """Maps each file to the stage whose folders contain it."""

    def __init__(self, run_dir: Path, manifests: Manifests, lists: Mapping[str, Any]) -> None:
        self.manifests, self.lists = manifests, lists
        self._of = {
            path.relative_to(run_dir).as_posix(): name
            for name in sorted(OUTPUTS, key=lambda name: name in manifests)
            for path in stages.outputs(run_dir, OUTPUTS[name])
        }

    def of(self, name: str) -> str | None:
        """Return the stage whose folders contain the file, None if none does."""
        return self._of.get(name)

    def lists_folder(self, stage: str, name: str) -> bool:
        """Whether the stage's list names all files of a folder; an earlier version named shards."""
        listed = self.lists.get(stage)
        if listed is None:
            return True  # the stage as a whole decides
        folder = name.partition("/")[0]
        return f"manifests/{stage}.json" in listed or any(
            each.partition("/")[0] == folder for each in listed
        )

    def is_unlisted(self, stage: str) -> bool:
        """Whether a stage, or one of its parts, is not complete or has no list."""
        states = [
            manifest["complete"] and name in self.lists
            for name, manifest in self.manifests.items()
            if name == stage
        ]
        parts = [name for name in self.manifests if name.startswith(f"{stage}-")]
        return not all(states) or (not states and bool(parts))


def _check_unlisted(name: str, path: Path, owners: _Owners, result: ChecksumReport) -> None:
    if name in (stages.CONFIG, *REPORT_FILES):
        return
    if stages.is_temporary(path):
        result.notes.append(f"{name} is a temporary file of a process that was stopped")
        result.not_covered.append(name)
    elif name.startswith("manifests/"):
        _check_manifest_file(path, owners, result)
    elif (owner := owners.of(name)) is None:
        result.notes.append(f"{name} belongs to no stage")
        result.not_covered.append(name)
    elif owners.is_unlisted(owner) or not owners.lists_folder(owner, name):
        line = f"{owner}: files written so far, the stage is not complete"
        if owner in owners.manifests and owners.manifests[owner]["complete"]:
            return  # reported once for the whole stage
        result.not_covered += [] if line in result.not_covered else [line]
    else:
        result.faults.append(f"{name}: it does not belong to the run")


def _check_manifest_file(path: Path, owners: _Owners, result: ChecksumReport) -> None:
    name, manifest = f"manifests/{path.name}", owners.manifests.get(path.stem)
    if path.suffix == ".lock":
        if path.stat().st_size:
            result.faults.append(f"{name}: expected an empty lock file")
    elif path.suffix == sums.SUFFIX:
        if path.stem == REPORT:
            result.faults += [] if path.stem in owners.lists else [f"{name}: there is no report"]
        elif manifest is None:
            result.faults.append(f"{name}: there is no manifest of the stage")
    elif path.suffix != ".json":
        result.faults.append(f"{name}: it does not belong to the run")
    elif manifest is not None and not manifest["complete"]:
        result.not_covered.append(f"{name}: the stage is not complete")


def _note_external_checkpoints(run_dir: Path, manifests: Manifests, result: ChecksumReport) -> None:
    pointer = run_dir / LOCATION
    if pointer.exists():
        address = files.read_text(pointer, limit=4096, follow=False).strip()
        result.not_covered.append(f"checkpoints at {address}, outside the run directory")
