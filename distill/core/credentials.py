"""Keep keys and passwords out of a run's files and out of printed text.

They belong in environment variables. Recognised are the content of variables that are named as
secrets, keys with the usual prefixes, and addresses that contain a password or a key.
"""

import base64
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, quote, urlsplit

from distill.core.errors import UserError

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_KNOWN = re.compile(
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{16,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}"
    r"|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|glpat-[\w-]{16,}|[Bb]earer +[\w.~+/-]{16,})"
)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>\\]+")
_SECRET_PARAMETER = re.compile(
    r"(key|token|secret|sig|signature|auth|password|passwd|pwd|credential)s?$", re.IGNORECASE
)
_SECRET_SETTING = re.compile(
    r"(^|_)(api_?key|secret|password|passwd|authorization|(access|auth|bearer|api)_token)$", re.I
)
_SHORTEST = 8  # characters of a secret that is looked for in other text


def refuse(text: str, where: str) -> None:
    """Refuse a text that holds a credential, without repeating it.

    Args:
        text: such as a configuration.
        where: the text's name in the error.

    Raises:
        UserError: it holds one.

    Example:
        >>> refuse("base_url = 'http://localhost:8000/v1'", "it")
        >>> refuse("base_url = 'http://me:pass@localhost/v1'", "it")
        Traceback (most recent call last):
        distill.core.errors.UserError: expected no credentials in it, got an address with a user \
or a password; keep them in an environment variable and name it as api_key_variable
    """
    for credential in _credentials(text, os.environ):
        raise UserError(
            f"no credentials in {where}",
            credential,
            "keep them in an environment variable and name it as api_key_variable",
        )


def _credentials(text: str, environment: Mapping[str, str]) -> Iterator[str]:
    for match in _ADDRESS.finditer(text):
        if credential := _of_address(match[0]):
            yield credential
    for name, secret in _secrets(environment):
        if secret in text:
            yield f"the content of the environment variable {name}"
    if _KNOWN.search(text):
        yield "what looks like an API key"


def _of_address(address: str) -> str | None:
    """Return the kind of credential in an address, None if there is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that cannot be read"
    if "@" in parts.netloc:
        return "an address with a user or a password"
    pairs = parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True)
    if any(_SECRET_PARAMETER.search(name) for name, _ in pairs):
        return "an address with a key in its query"
    return None


def _secrets(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in environment.items():
        secret = value.strip()
        if _SECRET_NAME.search(name) and len(secret) >= _SHORTEST and not secret.startswith("/"):
            yield name, secret


def mask(text: str) -> str:
    """Return a text with every recognised credential replaced by `***`."""
    text = _ADDRESS.sub(lambda match: HIDDEN if _of_address(match[0]) else match[0], text)
    for _, secret in _secrets(os.environ):
        text = text.replace(secret, HIDDEN)
    return _KNOWN.sub(HIDDEN, text)


def is_variable(name: str) -> bool:
    """Return whether a text has the form of an environment variable's name."""
    return re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) is not None


def is_secret_name(name: str) -> bool:
    """Return whether a setting of this name would hold a credential.

    Example:
        >>> is_secret_name("api_key"), is_secret_name("max_tokens"), is_secret_name("seed")
        (True, False, False)
    """
    return _SECRET_SETTING.search(name) is not None


def mask_secret(text: str, secret: str) -> str:
    """Return a text with a secret, and long parts of it, masked, whether plain or encoded.

    Example:
        >>> mask_secret("bad key abcdefghij or 6162636465666768696a or abcdefghi", "abcdefghij")
        'bad key *** or *** or ***'
    """
    if len(secret) < _SHORTEST:
        return text.replace(secret, HIDDEN) if secret else text
    pieces = {form[at : at + _SHORTEST] for form in _forms(secret) for at in range(len(form) - 7)}
    if not any(piece in text for piece in pieces):
        return text
    marked = [False] * len(text)
    for at in range(len(text) - _SHORTEST + 1):
        if text[at : at + _SHORTEST] in pieces:
            marked[at : at + _SHORTEST] = [True] * _SHORTEST
    return _masked(text, marked)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret and its usual encodings: reversed, quoted, hexadecimal, base64."""
    content = secret.encode()
    yield from (secret, secret[::-1], quote(secret, safe=""))
    yield from (content.hex(), content.hex().upper())
    for shift in range(3):  # of the bytes before it in a longer text
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Only whole groups: those at the ends depend on what stands beside the secret.
            yield encode(b"\0" * shift + content).decode().rstrip("=")[4 if shift else 0 : -1]


def _masked(text: str, marked: list[bool]) -> str:
    runs = itertools.groupby(zip(text, marked, strict=True), key=lambda pair: pair[1])
    return "".join(HIDDEN if hide else "".join(char for char, _ in run) for hide, run in runs)
