"""Where the files that ship with the package lie: gin_configs and data."""

from pathlib import Path

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
