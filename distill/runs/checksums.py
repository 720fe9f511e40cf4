"""Whether the files of a run are the ones that its stages left, by SHA-256; reads no records."""

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
class Checked:
    """What comparing the files found.

    Attributes:
        faults: what is not as the stages left it.
        notes: what is worth knowing and no fault.
        not_covered: what no checksum stands for.
    """

    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    not_covered: list[str] = dataclasses.field(default_factory=list)


def check(run_dir: Path, manifests: Manifests) -> Checked:
    """Compare every file of a run directory with the lists in `manifests/`.

    Args:
        run_dir: the run directory, without links in it.
        manifests: those of the stages, by name.
    """
    found = Checked()
    lists = _lists(run_dir, manifests, found)
    _check_chain(run_dir, manifests, lists, found)
    recorded = {name: digest for listed in lists.values() for name, digest in listed.items()}
    present = {path.relative_to(run_dir).as_posix(): path for path in files.walk(run_dir)}
    found.faults += [f"{name}: it is missing" for name in sorted(recorded.keys() - present)]
    for name in sorted(recorded.keys() & present):
        if files.sha256(present[name], follow=False) != recorded[name]:
            found.faults.append(f"{name}: its SHA-256 is not the recorded one")
    _check_config(run_dir, manifests, found)
    owners = _Owners(run_dir, manifests, lists)
    for name in sorted(present.keys() - recorded):
        _check_unlisted(name, present[name], owners, found)
    _say_what_is_elsewhere(run_dir, manifests, found)
    return found


# --- Lists -------------------------------------------------------------------------------------


def _lists(run_dir: Path, manifests: Manifests, found: Checked) -> dict[str, dict[str, str]]:
    """Return the list of each stage that has one, and of the report."""
    lists = {}
    for name, manifest in manifests.items():
        if not manifest["complete"]:
            continue
        # Any sign of a list will do, so that no damaged field makes it an earlier version's.
        if {"files", "version"} & manifest.keys() or sums.path_of(run_dir, name).exists():
            listed = _list(run_dir, name, found)
            if listed is not None and len(listed) - 1 != manifest.get("files"):
                got = f"{len(listed) - 1} where the manifest has {manifest.get('files')!r:.20}"
                found.faults.append(f"manifests/{name}.sha256: it lists {got} files of the stage")
        else:
            listed = _of_earlier_version(name, manifest, found)
        lists |= {name: listed} if listed is not None else {}
    if any((run_dir / name).exists() for name in REPORT_FILES) and _is_new(manifests):
        listed = _list(run_dir, REPORT, found)
        lists |= {REPORT: listed} if listed is not None else {}
    return lists


def _list(run_dir: Path, name: str, found: Checked) -> dict[str, str] | None:
    try:
        listed = sums.read(sums.path_of(run_dir, name))
    except UserError as error:
        found.faults.append(f"manifests/{name}.sha256: {error}")
        return None
    wanted = REPORT_FILES if name == REPORT else (f"manifests/{name}.json",)
    for file in wanted:
        if file not in listed:
            found.faults.append(f"manifests/{name}.sha256: {file} is not in it")
    return listed


def _of_earlier_version(
    name: str, manifest: Mapping[str, Any], found: Checked
) -> dict[str, str] | None:
    """Return the digests of shards, which an earlier version kept in the manifest."""
    shards = manifest.get("shards")
    if isinstance(shards, dict) and all(isinstance(each, str) for each in shards.values()):
        found.not_covered.append(f"{name}: all but its shards, as an earlier version made it")
        return dict(shards)
    found.notes.append(f"{name}: no checksums were recorded")
    found.not_covered.append(f"{name}: an earlier version made it without checksums")
    return None


def _is_new(manifests: Manifests) -> bool:
    return any("version" in manifest for manifest in manifests.values())


def _check_chain(
    run_dir: Path, manifests: Manifests, lists: Mapping[str, Any], found: Checked
) -> None:
    """Check that each stage was made from the very files that its inputs list now."""
    for name, manifest in manifests.items():
        made_from = manifest.get("made_from", {})
        for source in manifest.get("inputs", {}):
            path = sums.path_of(run_dir, source)
            if source not in lists or not path.exists() or "version" not in manifest:
                continue
            if files.sha256(path, follow=False) != made_from.get(source):
                found.faults.append(f"{name}: it was made from another {source}")


def _check_config(run_dir: Path, manifests: Manifests, found: Checked) -> None:
    path = run_dir / stages.CONFIG
    try:
        seals = journal.seals(journal.read(path), path)
    except UserError as error:
        found.faults.append(f"{stages.CONFIG}: {error}")
        return
    for name, manifest in manifests.items():
        if "config" in manifest and manifest["config"] not in seals:
            found.faults.append(f"{stages.CONFIG}: what stage {name} was run with is not in it")
    if path.exists() and not seals:
        if _is_new(manifests):
            found.faults.append(f"{stages.CONFIG}: it has no checksum")
        else:
            found.not_covered.append(f"{stages.CONFIG}: of an earlier version")


# --- Files that no list names ------------------------------------------------------------------


class _Owners:
    """Which stage a file belongs to by its place."""

    def __init__(self, run_dir: Path, manifests: Manifests, lists: Mapping[str, Any]) -> None:
        self.manifests, self.lists = manifests, lists
        self._of = {
            path.relative_to(run_dir).as_posix(): name
            for name in sorted(OUTPUTS, key=lambda name: name in manifests)
            for path in stages.outputs(run_dir, OUTPUTS[name])
        }

    def of(self, name: str) -> str | None:
        """Return the stage in whose folders a file lies."""
        return self._of.get(name)

    def is_open(self, stage: str) -> bool:
        """Whether a stage, or a part of it, is at work or has no list."""
        states = [
            manifest["complete"] and name in self.lists
            for name, manifest in self.manifests.items()
            if name == stage
        ]
        parts = [name for name in self.manifests if name.startswith(f"{stage}-")]
        return not all(states) or (not states and bool(parts))


def _check_unlisted(name: str, path: Path, owners: _Owners, found: Checked) -> None:
    if name in (stages.CONFIG, *REPORT_FILES):
        return
    if stages.is_temporary(path):
        found.notes.append(f"{name} is left of a start that was stopped")
        found.not_covered.append(name)
    elif name.startswith("manifests/"):
        _check_beside_manifests(path, owners, found)
    elif (owner := owners.of(name)) is None:
        found.notes.append(f"{name} is of no stage")
        found.not_covered.append(name)
    elif owners.is_open(owner):
        line = f"{owner}: what it has written so far, as it is not complete"
        if owner in owners.manifests and owners.manifests[owner]["complete"]:
            return  # said of the stage as a whole
        found.not_covered += [] if line in found.not_covered else [line]
    else:
        found.faults.append(f"{name}: it is not of the run")


def _check_beside_manifests(path: Path, owners: _Owners, found: Checked) -> None:
    name, manifest = f"manifests/{path.name}", owners.manifests.get(path.stem)
    if path.suffix == ".lock":
        if path.stat().st_size:
            found.faults.append(f"{name}: a lock is empty, this one is not")
    elif path.suffix == sums.SUFFIX:
        if path.stem == REPORT:
            found.faults += [] if path.stem in owners.lists else [f"{name}: there is no report"]
        elif manifest is None:
            found.faults.append(f"{name}: there is no manifest of the stage")
    elif path.suffix != ".json":
        found.faults.append(f"{name}: it is not of the run")
    elif manifest is not None and not manifest["complete"]:
        found.not_covered.append(f"{name}: the stage is not complete")


def _say_what_is_elsewhere(run_dir: Path, manifests: Manifests, found: Checked) -> None:
    pointer = run_dir / LOCATION
    if pointer.exists():
        address = files.read_text(pointer, limit=4096, follow=False).strip()
        found.not_covered.append(f"checkpoints at {address}, outside of the run directory")
