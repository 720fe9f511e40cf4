"""A run directory's stages: their settings, inputs, counts, and the digests of what they read."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import stat
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core import credentials, files, journal, sums
from distill.core import inputs as input_files
from distill.core.errors import UserError

logger = logging.getLogger(__name__)

CONFIG = "config.gin"
UNRECORDED = "0.1.0"  # the only version whose manifests do not name it
# What a manifest holds, of every version.
_FIELDS = {"stage": str, "settings": dict, "complete": bool, "seconds": float, "summary": dict}


def outputs(run_dir: Path, patterns: Iterable[str]) -> Iterator[Path]:
    """Yield the files of a stage in a run directory, without what killed starts have left.

    Args:
        run_dir: the run.
        patterns: of the stage's files and folders, relative to the run directory.

    Raises:
        UserError: a matching path is a link, FIFO, socket or device.
    """
    for pattern in patterns:
        for top in sorted(run_dir.glob(pattern)):
            yield from (path for path in files.walk(top) if not is_temporary(path))


def is_temporary(path: Path) -> bool:
    """Return whether a path is a temporary file of `files.atomic_path`."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def version() -> str:
    """Return the version of the package, `unknown` where it is not installed."""
    try:
        return importlib.metadata.version("distill")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def describe(value: object) -> Any:
    """Return a setting as JSON; equal settings give equal JSON.

    Dataclasses give their type and those fields that their repr shows, so that a secret kept out of
    the repr stays out of manifests; functions give their qualified name.

    Example:
        >>> from distill.core.records import Accuracy
        >>> describe({"floor": Accuracy(1, 2)})
        {'floor': {'type': 'Accuracy', 'correct': 1, 'n': 2}}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in dataclasses.fields(value) if field.repr]
        return {
            "type": type(value).__name__,
            **{name: describe(getattr(value, name)) for name in shown},
        }
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [describe(item) for item in value]
    if isinstance(value, types.FunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def _differences(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(expected.keys() | got.keys()):
            where = f"{path}.{key}" if path else key
            yield from _differences(expected.get(key), got.get(key), where)
    elif expected != got:
        yield f"{path}={got!r} where the run has {expected!r}"


class Stage:
    """One stage of a run directory: its identity, its state and its counts.

    `RUN_DIR/manifests/NAME.json` holds the settings, the inputs' digests, the digest of both, the
    SHA-256 of the files outside the run that the settings name, version and dates, the seconds
    spent over all starts and, once complete, the counts that the stage reports.

    `RUN_DIR/manifests/NAME.sha256`, once complete, holds the SHA-256 of every file of the stage and
    of its manifest. The manifest of a later stage holds the SHA-256 of that list in `made_from`, so
    the lists are a chain up to the problems.
    """

    def __init__(
        self, run_dir: Path, name: str, settings: Mapping[str, Any], outputs: Iterable[str] = ()
    ) -> None:
        self.run_dir, self.name, self.outputs = Path(run_dir), name, tuple(outputs)
        self._path = self.run_dir / "manifests" / f"{name}.json"
        self._digests: dict[str, str] = {}
        described = json.dumps(describe(settings))
        credentials.refuse(described, f"the settings of stage {name}")
        self._manifest: dict[str, Any] = {
            "stage": name,
            "version": version(),
            "started": _now(),
            "settings": json.loads(described),
            "complete": False,
            "seconds": 0.0,
            "summary": {},
        }

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        run_dir: Path,
        name: str,
        *,
        settings: Mapping[str, Any],
        inputs: Sequence[str] = (),
        reads: Iterable[str | Path | None] = (),
        outputs: Iterable[str] = (),
    ) -> Iterator["Stage"]:
        """Open a stage for one process; its seconds are kept however the block ends.

        A first start that a UserError ends before it has written anything leaves no manifest, so
        that the corrected command is not taken for another run.

        Args:
            run_dir: the run directory, made where there is none.
            name: the stage's name.
            settings: every value that determines the stage's result; no batch sizes or numbers of
                workers. A value that is `ReadsFiles` names files whose content counts too.
            inputs: stages that must be complete.
            reads: more files and folders whose content counts, as the settings name them; None is
                skipped.
            outputs: patterns of the files and folders of the run directory that this stage alone
                fills; `finish` lists their SHA-256.

        Raises:
            UserError: an input is not complete, the directory belongs to another run, a file has
                another content than the run was made from, another process runs this stage, or a
                link in the directory leads elsewhere.
        """
        stage = cls(run_dir, name, settings, outputs)
        named = [
            *input_files.paths_in(settings),
            *(Path(path) for path in reads if path is not None),
        ]
        files.require_plain(stage.run_dir)
        stage._path.parent.mkdir(parents=True, exist_ok=True)
        with stage._lock():
            stage._join(inputs, named)
            start, before, refused = time.monotonic(), stage._entries(), False
            if not stage.complete:
                logger.info("%s: start", name)
            try:
                yield stage
            except UserError:
                refused = stage._is_new and stage._entries() == before
                raise
            finally:
                if refused:
                    stage._path.unlink()
                elif not stage._was_complete:
                    stage._manifest["seconds"] += time.monotonic() - start
                    stage._write()
            if stage.complete and not stage._was_complete:
                logger.info("%s: done in %.1f s %s", name, stage.seconds, _line(stage.summary))

    @property
    def complete(self) -> bool:
        """Whether an earlier start, or this one, has finished the stage."""
        return self._manifest["complete"]

    @property
    def summary(self) -> dict[str, Any]:
        """The counts that the stage reported when it finished."""
        return self._manifest["summary"]

    @property
    def seconds(self) -> float:
        """Seconds spent over all starts; those of a start that was killed are lost."""
        return self._manifest["seconds"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the manifest holds them."""
        return self._manifest["settings"]

    def finish(self, **summary: Any) -> None:
        """Mark the stage complete with its counts; numbers keep their unit in the name.

        Reads every file of the stage once, for its SHA-256.
        """
        self._digests = sums.of(self.run_dir, outputs(self.run_dir, self.outputs))
        result = {"summary": summary, "files": len(self._digests), "version": version()}
        seals = journal.seals(journal.read(self.run_dir / CONFIG), self.run_dir / CONFIG)
        config = {"config": seals[-1]} if seals else {}
        self._manifest |= {**result, **config, "finished": _now(), "complete": True}

    def _write(self) -> None:
        """Write the list of digests, which includes the manifest's own, and then the manifest.

        A kill between the two leaves an incomplete stage, which repeats its last part.
        """
        text = files.json_text(self._manifest)
        if self.complete:
            name = self._path.relative_to(self.run_dir).as_posix()
            own = hashlib.sha256(text.encode()).hexdigest()
            listed = sums.text({**self._digests, name: own})
            files.write_text(sums.path_of(self.run_dir, self.name), listed)
        files.write_text(self._path, text)

    def _entries(self) -> set[Path]:
        """Return the entries of the run directory and of its folders, without the manifests."""
        paths = (path for pattern in ("*", "*/*") for path in self.run_dir.glob(pattern))
        return {path for path in paths if self._path.parent not in (path, path.parent)}

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = open_lock(self._path.with_suffix(".lock"))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise UserError(
                f"one process in stage {self.name} of {self.run_dir}",
                "another that is running",
                "wait for it or use another --run_dir",
            ) from error
        finally:
            os.close(descriptor)

    def _join(self, inputs: Sequence[str], named: Iterable[Path]) -> None:
        """Resume from an earlier start after checking that it belongs to the same run."""
        digests = {name: manifest(self.run_dir, name)["digest"] for name in inputs}
        text = json.dumps([self.name, self._manifest["settings"], digests], sort_keys=True)
        self._manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
        self._manifest["inputs"] = digests
        self._manifest["made_from"] = self._lists(inputs)
        self._is_new = not self._path.exists()
        earlier = None if self._is_new else read_manifest(self._path)
        if earlier is not None:
            self._refuse_other(earlier)
        self._manifest["reads"] = input_files.identities(
            named, (earlier or {}).get("reads", {}), self.run_dir
        )
        if earlier is not None:
            added = {} if earlier["complete"] else {"reads": self._manifest["reads"]}
            self._manifest = earlier | added
        else:
            self._write()
        self._was_complete = self.complete

    def _lists(self, inputs: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of the inputs' lists; runs of the first versions have no lists."""
        paths = {name: sums.path_of(self.run_dir, name) for name in inputs}
        return {name: files.sha256(path) for name, path in paths.items() if path.exists()}

    def _refuse_other(self, earlier: Mapping[str, Any]) -> None:
        if earlier["digest"] != self._manifest["digest"]:
            differences = list(_differences(earlier["settings"], self._manifest["settings"]))
            got = f"{self.name} with {differences[0] if differences else 'other inputs'}"
            do = "use another --run_dir or the settings of that run"
            if (wrote := earlier.get("version", UNRECORDED)) != version():
                got = f"{got}, written by distill {wrote}"
                do = f"use another --run_dir, or distill {wrote} with the settings of that run"
            raise UserError(f"the settings of the run in {self.run_dir}", got, do)
        for name, digest in earlier.get("made_from", {}).items():
            if self._manifest["made_from"].get(name, digest) != digest:
                raise UserError(
                    f"the stage {name} that {self.name} in {self.run_dir} was made from",
                    "one that was made anew or changed",
                    "restore it or use another --run_dir",
                )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def open_lock(path: Path) -> int:
    """Open a lock file without following a link and without truncating the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise UserError(f"a lock at {path}", "a link or no file", "remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"a lock at {path}", "no regular file", "remove it")
    return descriptor


# --- Manifests ---------------------------------------------------------------------------------


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest whose fields are of their types.

    Raises:
        UserError: it is missing, no JSON, or has a field of another type.
    """
    stated = files.read_object(path, follow=False)
    for field, kind in _FIELDS.items():
        if not isinstance(stated.get(field), kind):
            got = f"{stated.get(field)!r:.60}"
            raise UserError(f"{field} of type {kind.__name__} in {path}", got, "restore the file")
    if stated["stage"] != path.stem:
        raise UserError(f"stage {path.stem} in {path}", f"{stated['stage']!r:.60}", "restore it")
    for field in ("inputs", "made_from", "reads"):
        if not isinstance(stated.get(field, {}), dict):
            raise UserError(f"{field} as an object in {path}", "another value", "restore the file")
    if not all(isinstance(read, dict) for read in stated.get("reads", {}).values()):
        raise UserError(
            f"an object for each file in reads of {path}", "another value", "restore it"
        )
    if not isinstance(stated.get("digest", ""), str):
        raise UserError(f"a digest as text in {path}", "another value", "restore the file")
    return stated


def manifest(run_dir: Path, name: str) -> dict[str, Any]:
    """Return the manifest of a complete stage.

    Raises:
        UserError: the stage is not complete, or its manifest is damaged.
    """
    path = Path(run_dir) / "manifests" / f"{name}.json"
    stated = read_manifest(path) if path.exists() else {"complete": False}
    if not stated["complete"]:
        raise UserError(
            f"stage {name} complete in {run_dir}", "none", f"run `distill {name}` on it first"
        )
    require_unchanged(Path(run_dir), stated)
    return stated


def require_unchanged(
    run_dir: Path, stated: Mapping[str, Any], suffixes: Sequence[str] = ()
) -> None:
    """Refuse a complete stage if its manifest or small files differ from its list.

    Args:
        run_dir: the run.
        stated: the manifest; one of a version without lists is not checked.
        suffixes: of further files to compare, such as `.json`.

    Raises:
        UserError: a file has another content, or the list is missing or damaged.
    """
    path = sums.path_of(run_dir, stated["stage"])
    if not {"files", "version"} & stated.keys() and not path.exists():
        return
    listed = sums.read(path)
    own = f"manifests/{stated['stage']}.json"
    for name in (own, *(each for each in listed if each.endswith(tuple(suffixes)) and suffixes)):
        if files.sha256(run_dir / name, follow=False) != listed.get(name):
            raise UserError(
                f"{name} in {run_dir} as stage {stated['stage']} left it",
                "another content",
                "restore it; `distill verify` compares every file",
            )


def _line(summary: Mapping[str, Any]) -> str:
    flat = (f"{key} {value}" for key, value in summary.items() if not isinstance(value, dict))
    return ", ".join(flat)
