"""Paths of the files that ship with the package: gin_configs and data."""

from pathlib import Path

from distill.core.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder, from a wheel or from a checkout.

    Args:
        name: path below the top level, such as `data/prompts`.

    Raises:
        FileNotFoundError: nothing of that name ships.

    Example:
        >>> shipped("gin_configs").is_dir()
        True
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"expected {name} below {_PACKAGE} or {_PACKAGE.parent}, got none")


def find(path: str | Path, kind: str) -> Path:
    """Return a path that exists here, or else the shipped one of that name.

    Args:
        path: such as `data/models/teacher`.
        kind: what it should be, for the error.

    Raises:
        UserError: there is none.
    """
    try:
        return Path(path) if Path(path).exists() else shipped(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{kind} at {path}", "no such path", "name one that exists") from error
