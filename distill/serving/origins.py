"""Whether a request to a server without a key comes from this machine or through a browser's page.

Any page that a user visits may send requests to his loopback addresses. It cannot set the headers
Host, Origin and Sec-Fetch-Site, and sends `application/json` only after a preflight, which this
server refuses.

Source:
    OWASP, Cross-Site Request Forgery Prevention; W3C, Fetch Metadata Request Headers.
"""

import ipaddress
import re
from collections.abc import Sequence

from starlette.types import Scope

from distill.serving.requests import RefusedError

_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9.-]{1,255}))(?::([0-9]{0,5}))?")
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
_OWN_SITES = ("same-origin", "none")


def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine: localhost or a loopback address, any port.

    A page's own domain may be made to resolve to a loopback address; no other name is accepted.

    Example:
        >>> [is_loopback(host) for host in ("LocalHost.:80", "[::1]:8000", "127.0.0.1.example.org")]
        [True, True, False]
    """
    found = _HOST.fullmatch(host.lower())
    if found is None or int(found[3] or 0) > 65535:
        return False
    try:
        if found[1]:
            address = ipaddress.IPv6Address(found[1])
            return (address.ipv4_mapped or address).is_loopback
        name = found[2].removesuffix(".")
        return name == "localhost" or ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


def refusal(scope: Scope) -> RefusedError | None:
    """Return why a request to a server without a key is refused, None if it is not."""
    hosts = _values(scope, b"host")
    if len(hosts) != 1 or not is_loopback(hosts[0]):
        return RefusedError(
            "expected a Host header that names localhost or a loopback address, got "
            f"{_shown(hosts)}; use such an address, or start the server with a key",
            status=403,
        )
    origins = {f"{scheme}://{hosts[0]}".lower() for scheme in ("http", "https")}
    sites = [site for site in _values(scope, b"sec-fetch-site") if site not in _OWN_SITES]
    if sites or any(origin.lower() not in origins for origin in _values(scope, b"origin")):
        return RefusedError(
            "expected a request that no other site's page makes, got "
            f"Origin {_shown(_values(scope, b'origin'))}; start the server with a key",
            status=403,
        )
    kinds = _values(scope, b"content-type")
    if scope["method"] not in _WITHOUT_BODY and not _are_json(kinds):
        return RefusedError(
            f"expected Content-Type: application/json, got {_shown(kinds)}; send it",
            status=415,
        )
    return None


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for each, value in scope["headers"] if each == name]


def _are_json(kinds: Sequence[str]) -> bool:
    names = [kind.partition(";")[0].strip().lower() for kind in kinds]
    return names == ["application/json"]


def _shown(values: Sequence[str]) -> str:
    return ", ".join(ascii(value[:60]) for value in values[:3]) or "none"
