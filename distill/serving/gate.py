"""Checks that precede the application: sizes of a head, the API key or the origin, the shutdown."""

import asyncio
import collections
import hashlib
import hmac
import time

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distill.serving import origins
from distill.serving.requests import RefusedError

MOST_HEADERS, MOST_HEADER_BYTES, LONGEST_PATH = 100, 16384, 2048
WITHOUT_KEY = ("/health",)


class Gate:
    """What every request passes before its body is read.

    Its headers are few. With a key, it sends the key, but to /health. Without one, it comes from
    this machine and no page made it, as `origins` says. The server is not about to end.

    Args:
        inner: the application behind.
        key: the bearer token of all routes but /health; None where none is needed.

    Attributes:
        statuses: how many requests got each status.
    """

    def __init__(self, inner: ASGIApp, key: str | None) -> None:
        self._inner, self._key, self._digest = inner, key, _digest((key or "").encode())
        self.statuses: collections.Counter[int] = collections.Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._inside: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        self._loop = asyncio.get_running_loop()
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.statuses[message["status"]] += 1
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await error_response(refused)(scope, receive, counted)
            return
        inside = asyncio.ensure_future(self._inner(scope, receive, counted))
        self._inside.add(inside)
        try:
            await inside
        except asyncio.CancelledError:
            if not inside.cancelled() or begun:
                raise
            await error_response(_CLOSING)(scope, receive, counted)
        finally:
            inside.cancel()
            self._inside.discard(inside)

    def close(self, patience: float) -> bool:
        """Refuse new requests; return whether those inside left within so many seconds.

        The others are refused too.
        For another thread than the event loop's; what never began has nobody inside.
        """
        if self._loop is None or self._loop.is_closed():
            return True
        return asyncio.run_coroutine_threadsafe(self._emptied(patience), self._loop).result()

    async def _emptied(self, patience: float) -> bool:
        self._closing = True
        until = time.monotonic() + patience
        while self._inside and time.monotonic() < until:
            await asyncio.sleep(0.02)
        late = list(self._inside)
        for inside in late:
            inside.cancel()
        return not late

    def _refusal(self, scope: Scope) -> RefusedError | None:
        refused = _too_long(scope)
        if refused is None and self._key is None:
            refused = origins.refusal(scope)
        if refused is None and self._key is not None and scope["path"] not in WITHOUT_KEY:
            refused = None if self._has_key(scope) else _NO_KEY
        return refused or (_CLOSING if self._closing else None)

    def _has_key(self, scope: Scope) -> bool:
        """Return whether the key is sent, in time that depends on neither key."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        same = hmac.compare_digest(_digest(token.strip()), self._digest)
        return same and scheme.lower() == b"bearer"


_NO_KEY = RefusedError(
    "expected the API key of this server as a bearer token, got none or another; "
    "send Authorization: Bearer KEY",
    status=401,
    code="invalid_api_key",
)
_CLOSING = RefusedError("the server is shutting down; try again", status=503, retry_after=5)


def _too_long(scope: Scope) -> RefusedError | None:
    headers, path = scope["headers"], len(scope["raw_path"]) + len(scope["query_string"])
    size = sum(len(name) + len(value) for name, value in headers)
    if path > LONGEST_PATH:
        return RefusedError(
            f"expected a path of at most {LONGEST_PATH} bytes, got {path}; see /v1/models",
            status=414,
        )
    if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
        return RefusedError(
            f"expected at most {MOST_HEADERS} headers of {MOST_HEADER_BYTES} bytes in all, got "
            f"{len(headers)} of {size}; send fewer",
            status=431,
        )
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def error_response(error: RefusedError) -> Response:
    """Return a refusal as OpenAI's API says it."""
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)
