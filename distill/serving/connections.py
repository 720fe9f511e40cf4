"""How many connections a client may hold and how long each may keep the server waiting.

uvicorn limits the seconds of an idle connection and the size of a head that is incomplete. This
adds seconds for heads, bodies and unread answers, and connections by address; it reads no request.
"""

import asyncio
import dataclasses
import enum
import functools
import ipaddress
import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from distill.serving.requests import RefusedError

IPV6_PREFIX = 64  # bits; a household has at least as many addresses as the rest can count
PIECE_BYTES = 4096  # what the parser is fed at once, so that no longer head is parsed whole
MOST_PIECES = 4096  # of one body, each of up to PIECE_BYTES
LEAST_READ = 4096  # bytes of an answer that a client must read in `write_seconds`

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
    """What connections may cost.

    Attributes:
        total: connections at once; of those who hold most, the longest silent one makes room.
        per_address: connections of one address (IPv6: of one /64); its longest silent one makes
            room.
        head_bytes: of a request's line and headers.
        head_seconds: from the first byte, or a new connection, to the end of a head.
        body_seconds: from there to the end of the body.
        idle_seconds: between two requests.
        write_seconds: within which a client reads a part of an answer.
        answer_seconds: within which it reads all that the server has for it.
        proxies: networks whose connections do not count by address.
    """

    total: int = 1000
    per_address: int = 256
    head_bytes: int = 16384
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 60.0
    write_seconds: float = 20.0
    answer_seconds: float = 300.0
    proxies: tuple[Network, ...] = ()


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address.

    Example:
        >>> network_of("::ffff:192.0.2.7"), network_of("2001:db8::7"), network_of("unix")
        ('192.0.2.7', '2001:db8::/64', 'unix')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_PREFIX), strict=False))


class Phase(enum.Enum):
    """What a connection is doing; in WORK the server has the turn, else the client has it."""

    IDLE = "the next request"
    HEAD = "a head"
    BODY = "a body"
    WORK = "an answer"


class Connections:
    """All connections of a server: who is admitted, and who has been silent for too long.

    Args:
        limits: what they may cost.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[str, set[Connection]] = {}
        # Those whose client has the turn, by address, the longest silent first.
        self._silent: dict[str, dict[Connection, None]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many connections are open."""
        return sum(map(len, self._open.values()))

    def admit(self, connection: "Connection") -> RefusedError | None:
        """Count a new connection, or return why there is no room for it."""
        address = connection.address
        mine = len(self._open.get(address, ()))
        counted = not self._is_proxy(connection.host)
        if counted and mine >= self.limits.per_address and not self._evict(address):
            return _no_room("of your address", 429)
        if len(self) >= self.limits.total and not self._evict(self._largest()):
            return _no_room("of this server", 503)
        self._open.setdefault(address, set()).add(connection)
        self.turn(connection)
        if self._sweep is None:
            self._later()
        return None

    def turn(self, connection: "Connection") -> None:
        """Note whose turn it is: a silent client's is the first to make room."""
        silent = self._silent.setdefault(connection.address, {})
        silent.pop(connection, None)
        if connection.phase is not Phase.WORK:
            silent[connection] = None

    def leave(self, connection: "Connection") -> None:
        """Forget a connection; nothing if it has been forgotten."""
        address = connection.address
        self._silent.get(address, {}).pop(connection, None)
        self._open.get(address, set()).discard(connection)
        if not self._open.get(address):
            self._open.pop(address, None)
            self._silent.pop(address, None)

    def _is_proxy(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self.limits.proxies)

    def _largest(self) -> str:
        """Return the address with the most connections that can make room."""
        return max(self._silent, key=lambda address: len(self._silent[address]), default="")

    def _evict(self, address: str) -> bool:
        """Close the longest silent connection of an address; return whether there was one."""
        longest = next(iter(self._silent.get(address, {})), None)
        if longest is None:
            return False
        self.leave(longest)
        longest.end()
        return True

    def _later(self) -> None:
        limits = self.limits
        seconds = (limits.head_seconds, limits.body_seconds, limits.write_seconds)
        self._sweep = asyncio.get_running_loop().call_later(min(1.0, *seconds) / 2, self._check)

    def _check(self) -> None:
        """End the connections whose time is over."""
        now = time.monotonic()
        for connection in [each for every in self._open.values() for each in every]:
            connection.check(now)
        self._sweep = None
        if self._open:
            self._later()


def _no_room(whose: str, status: int) -> RefusedError:
    return RefusedError(
        f"expected room for a connection {whose}, got none; close some and try again",
        status=status,
        retry_after=1,
    )


class Parser(h11.Connection):
    """h11's parser, for bodies in few pieces.

    A chunk of one byte costs as much time as one of PIECE_BYTES, so a body has a limit of both.

    Attributes:
        status: of the answer to a request that is refused.
    """

    def __init__(self, head_bytes: int) -> None:
        super().__init__(h11.SERVER, head_bytes)
        self.status, self._pieces = 400, 0

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            RemoteProtocolError: the request is malformed or too large.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.status = error.error_status_hint if error.error_status_hint < 500 else 400
            raise
        if isinstance(event, h11.Request):
            self._pieces = 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                # Whoever is in between may have read the other one.
                raise h11.RemoteProtocolError("two framings", self.status)
        self._pieces += isinstance(event, h11.Data)
        if self._pieces > MOST_PIECES:
            self.status = 413
            raise h11.RemoteProtocolError("too many pieces", self.status)
        return event


class Connection(H11Protocol):
    """One connection of uvicorn's, held to the limits.

    Args:
        connections: all of them.
        keywords: uvicorn's own.

    Attributes:
        host: the address of the other end.
        address: what it counts as.
        phase: whose turn it is, and for what.
    """

    def __init__(self, connections: Connections, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._connections, self._limits = connections, connections.limits
        self.conn = Parser(self._limits.head_bytes)
        self.host = self.address = ""
        self.phase, self._since, self._of = Phase.HEAD, time.monotonic(), self.cycle
        self._unread, self._read_at, self._full_since = 0, self._since, self._since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or answer that there is no room and close it."""
        super().connection_made(transport)
        self.host = self.client[0] if self.client else ""
        self.address = network_of(self.host)
        refused = self._connections.admit(self)
        if refused is not None:
            self._refuse(refused)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, piece by piece."""
        for first in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[first : first + PIECE_BYTES])

    def handle_events(self) -> None:
        """Act on what was parsed, and note whose turn it is now."""
        super().handle_events()
        self._note()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        super().on_response_complete()
        self._note()

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._read_at, self._unread = time.monotonic(), self.transport.get_write_buffer_size()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, in the API's shape, and close."""
        self._refuse(
            RefusedError(
                "expected a well-formed HTTP/1.1 request, got one that is malformed or too large; "
                "use an HTTP library",
                status=self.conn.status,
            )
        )

    def check(self, now: float) -> None:
        """End the connection if its client has kept the server waiting for too long."""
        self._check_reading(now)
        limit = {
            Phase.HEAD: self._limits.head_seconds,
            Phase.BODY: self._limits.body_seconds + 1,  # the application answers before
            Phase.IDLE: self._limits.idle_seconds + 1,  # uvicorn's own timer is before
        }.get(self.phase)
        if limit is None or now - self._since < limit or self.transport.is_closing():
            return
        if not self._is_asking():
            self.end()
            return
        expected = f"expected {self.phase.value} within {limit:g} seconds"
        self._refuse(RefusedError(f"{expected}, got a part; send it at once", status=408))

    def end(self) -> None:
        """Close; what the client has not read is lost."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _check_reading(self, now: float) -> None:
        """End the connection if its client reads its answer too slowly."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or self._unread == 0:
            self._full_since = now
        if unread == 0 or self._unread == 0 or unread <= self._unread - LEAST_READ:
            self._unread, self._read_at = unread, now
        self._unread = max(self._unread, unread)
        slow = now - self._read_at >= self._limits.write_seconds
        if slow or now - self._full_since >= self._limits.answer_seconds:
            self.transport.abort()

    def _is_asking(self) -> bool:
        """Return whether the client has sent a part of a request."""
        return self.phase is Phase.BODY or bool(self.conn.trailing_data[0])

    def _note(self) -> None:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            phase = Phase.BODY
        elif state is not h11.IDLE:
            phase = Phase.WORK
        else:
            phase = Phase.HEAD if self.conn.trailing_data[0] or not self.cycle else Phase.IDLE
        if (phase, self.cycle) != (self.phase, self._of):
            self.phase, self._of, self._since = phase, self.cycle, time.monotonic()
            if not self.transport.is_closing():
                self._connections.turn(self)

    def _refuse(self, error: RefusedError) -> None:
        """Answer, if the request has no answer yet, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_raw(error))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def _raw(error: RefusedError) -> bytes:
    """Return an answer outside of any request that h11 has parsed."""
    body = json.dumps(error.body).encode()
    head = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def protocol(limits: ConnectionLimits) -> Callable[..., Connection]:
    """Return what makes uvicorn's connections, held to limits of their own."""
    return functools.partial(Connection, Connections(limits))
