"""Serve a model of ours behind OpenAI's HTTP API, for harvests and for trying it out.

PATH is a directory with a model: one that ships (data/models/teacher), a run directory (its chosen
checkpoint), or an exported Hugging Face directory.

The server answers /v1/completions, /v1/chat/completions, /v1/models and /health, and with --policy
/v1/answers: {"model", "question", "budget", "seed"} is answered by the policy's strategy for the
question's difficulty, as `distill answer` does, with what was spent.

A chat's last message, the user's, is the prompt as it is. The same request with the same seed gives
the same text, whoever else asks; of n completions the first has the request's seed. Log-
probabilities are the model's own, at temperature 1, whatever the temperature. SIGTERM and SIGINT
let the requests in flight finish, for --shutdown_seconds at most, and refuse others with 503; one
more signal, a second later or more, ends at once.

Programs for prompts and completions of usual lengths are compiled before the server listens; one
that is missing is compiled while others are answered. JAX keeps them for the next start where the
environment variable JAX_COMPILATION_CACHE_DIR names a directory.

Without a key the server listens at a loopback address alone, and refuses requests with another Host
than localhost or a loopback address, requests that a web page makes, and bodies whose Content-Type
is not application/json.
"""

import argparse
import contextlib
import functools
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from distill.test_time.answer import add_arguments, answerer

if TYPE_CHECKING:
    from distill.core.errors import UserError
    from distill.models.programs import LocalPrograms, Program
    from distill.models.sampling import LocalGenerator
    from distill.serving.application import Door, Served
    from distill.serving.connections import ConnectionLimits, Network

logger = logging.getLogger(__name__)

KEY_VARIABLE = "DISTILL_API_KEY"
BACKLOG = 128  # connections that the kernel keeps, and that are accepted at once
OTHER_FILES = 128  # descriptors that are no connections
PROGRESS_SECONDS = 5
AGAIN_SECONDS = 1  # a process may get one signal twice, as from its group


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; return 0, or exit with 1 where requests were not answered.

    Raises:
        UserError: there is no such model, no such key, or the address is taken.
    """
    options = _parser().parse_args(arguments)
    key = read_key(options.api_key_variable, options.host)
    from distill.models.programs import LocalPrograms, usual
    from distill.serving.application import application
    from distill.serving.batching import Batcher
    from distill.serving.requests import Limits

    served = load(Path(options.path), name=options.model, batch_size=options.batch_size)
    listener = bind(options.host, options.port)
    programs = LocalPrograms(cast("LocalGenerator", served.generator))
    compile_ahead(programs, usual(options.compile_prompt_tokens, options.compile_tokens))
    batcher = Batcher(
        served.generator,
        batch_size=options.batch_size,
        max_wait=options.max_wait_ms / 1000,
        max_queue=options.max_queue,
        programs=programs,
    )
    answering = (
        answerer(options, served.generator, options.solution_tokens) if options.policy else None
    )
    limits = Limits(
        options.max_tokens, options.max_prompt_tokens, body_seconds=options.body_seconds
    )
    door = application(served, batcher, limits, key=key, answering=answering)
    stop = _stopped_by_signals()
    with serving(
        door,
        options.host,
        options.port,
        patience=options.shutdown_seconds,
        limits=_connection_limits(options),
        listener=listener,
    ) as running:
        guard = "with a key" if key else "without a key"
        logger.info("serving %s at %s, %s", served.name, running.url, guard)
        stop.wait()
        logger.info("shutting down")
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(door.answers.items()))
    logger.info("answered %d requests: %s", door.answers.total(), statuses or "none")
    if not running.answered_all:
        _end_at_once()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="the directory of a model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--model", help="the model's name for clients (that of PATH)")
    parser.add_argument(
        "--api_key_variable",
        metavar="NAME",
        help="environment variable that holds the key clients must send "
        f"({KEY_VARIABLE}; where that is not set, a loopback address needs no key)",
    )
    parser.add_argument(
        "--proxy",
        type=_network,
        action="append",
        default=[],
        metavar="NETWORK",
        help="address or network, as 10.0.0.7 or 10.0.0.0/24, of a proxy in front; may be "
        "repeated. Its connections do not count by address, and the last other address in "
        "X-Forwarded-For is the client (none)",
    )
    for name, low, default, meaning in (
        ("batch_size", 1, 16, "requests that run together"),
        ("max_wait_ms", 1, 5, "milliseconds that a request waits for others to run with"),
        ("max_queue", 1, 1024, "requests that wait, one client's up to 3/4; else 429"),
        ("max_tokens", 1, 1024, "tokens of a completion, at most"),
        ("max_prompt_tokens", 1, 2048, "tokens of a prompt, at most"),
        ("solution_tokens", 1, 128, "tokens of a solution drawn by the policy, at most"),
        ("compile_prompt_tokens", 0, 256, "compile first for prompts up to this; 0 skips it"),
        ("compile_tokens", 0, 256, "compile first for completions up to this; 0 skips it"),
        ("connections", 1, 1000, "connections, of which the longest silent makes room"),
        ("connections_per_address", 1, 256, "those of one address, or of one /64 of IPv6"),
        ("head_seconds", 1, 10, "seconds until a request's headers have arrived"),
        ("body_seconds", 1, 30, "seconds from there until its body has arrived"),
        ("idle_seconds", 1, 60, "seconds that a connection waits for its next request"),
        ("write_seconds", 1, 20, "seconds in which a client must read 4 KiB of its answer"),
        ("shutdown_seconds", 1, 120, "how long requests in flight may take to finish"),
    ):
        parser.add_argument(
            f"--{name}",
            type=functools.partial(_whole, low),
            default=default,
            help=f"{meaning} (%(default)s)",
        )
    add_arguments(parser, required=False)
    return parser


def _whole(low: int, text: str) -> int:
    if not text.isdecimal() or not low <= int(text[:10]) <= 10**7:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {low} to 10000000, got {text}"
        )
    return int(text[:10])


def _network(text: str) -> "Network":
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected an address or a network as 10.0.0.0/24, got {text}"
        ) from error


def _connection_limits(options: argparse.Namespace) -> "ConnectionLimits":
    from distill.serving.connections import ConnectionLimits

    return ConnectionLimits(
        total=_with_descriptors(options.connections),
        per_address=options.connections_per_address,
        head_seconds=options.head_seconds,
        body_seconds=options.body_seconds,
        idle_seconds=options.idle_seconds,
        write_seconds=options.write_seconds,
        proxies=tuple(options.proxy),
    )


def _with_descriptors(connections: int) -> int:
    """Allow this process descriptors for so many connections; return for how many it has them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + BACKLOG + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return connections
    possible = max(soft - BACKLOG - OTHER_FILES, 1)
    if possible < connections:
        logger.info("%d connections, as the limit of descriptors is %d", possible, soft)
    return min(connections, possible)


def _end_at_once() -> NoReturn:
    """End the process while threads of it still compile or write."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text[:10]) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return int(text[:10])


def read_key(variable: str | None, host: str) -> str | None:
    """Return the key that clients must send, None where none is needed.

    Args:
        variable: named by the user; None for KEY_VARIABLE, which may be unset on loopback.
        host: where the server listens.

    Raises:
        UserError: the variable is not set, or no header can carry what it holds.
    """
    from distill.endpoints import session

    if variable is None and not os.environ.get(KEY_VARIABLE, "").strip() and _is_loopback(host):
        return None
    return session.read_key(variable or KEY_VARIABLE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- What is served ----------------------------------------------------------------------------


def load(path: Path, *, name: str | None = None, batch_size: int = 16) -> "Served":
    """Return the model of a directory, ready to serve.

    Args:
        path: a directory of `weights.save` (also one that ships), of `distill export`, or of a run.
        name: the model's name for clients; that of the directory if None.
        batch_size: rows that run together.

    Raises:
        UserError: there is no model, or it is damaged.
    """
    import dataclasses

    from distill.core import paths
    from distill.models.decoder import DecoderModel
    from distill.serving.application import Served

    directory = paths.find(path, "the directory of a model")
    name = name or directory.resolve().name
    generator = dataclasses.replace(
        _generator(directory, batch_size), name=name, batch_size=batch_size
    )
    return Served(
        generator,
        name,
        lambda text: len(generator.tokenizer.encode(text)),
        echoes=isinstance(generator.network, DecoderModel),
    )


def _generator(directory: Path, batch_size: int) -> "LocalGenerator":
    from distill.core import files
    from distill.core.errors import UserError
    from distill.models.saved import local_generator
    from distill.models.weights import CONFIG

    selection = directory / "reports" / "selection.json"
    if selection.is_file():
        from distill.training import choice
        from distill.training.evaluate import students

        chosen = students(directory, batch_size)(choice.read(directory)["chosen_step"])
        return cast("LocalGenerator", chosen)
    if not (directory / CONFIG).is_file():
        raise UserError(
            f"a model or a run with a chosen checkpoint in {directory}",
            f"neither {CONFIG} nor reports/selection.json",
            "name a directory with a model, or run `distill select` first",
        )
    found = files.read_document(directory / CONFIG)
    return _exported(directory) if "model_type" in found else local_generator(directory)


def _exported(directory: Path) -> "LocalGenerator":
    from distill.core.errors import UserError
    from distill.models import hugging_face, hugging_face_vocabulary, weights
    from distill.models.sampling import LocalGenerator
    from distill.models.saved import open_vocabulary

    vocabulary = directory / hugging_face_vocabulary.SPIECE
    if not vocabulary.is_file():
        raise UserError(f"a vocabulary {vocabulary}", "none", "copy the model's spiece.model there")
    model, params = hugging_face.load(directory)
    found = hugging_face_vocabulary.read(directory)
    weights.require_exported(directory, weights.Vocabulary(vocabulary, found.extra_ids))
    return LocalGenerator(model, params, open_vocabulary(vocabulary, found.extra_ids))


def compile_ahead(programs: "LocalPrograms", wanted: Iterable["Program"]) -> None:
    """Compile programs one after another, and report how many are left.

    Args:
        programs: those of the generator.
        wanted: what to compile.
    """
    left, begun, said = list(wanted), time.monotonic(), -math.inf
    if not left:
        return
    logger.info("compiling %d programs for prompts and completions of usual lengths", len(left))
    for number, program in enumerate(left, 1):
        programs.compile(program)
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS and number < len(left):
            seconds, said = (now - begun) / number * (len(left) - number), now
            logger.info("compiled %d of %d, about %.0f s left", number, len(left), seconds)
    logger.info("compiled %d programs in %.0f s", len(left), time.monotonic() - begun)


# --- The server --------------------------------------------------------------------------------


class Running:
    """A server that listens.

    Attributes:
        url: its address up to and with /v1.
        answered_all: whether all requests in flight were answered; known once it has ended.
    """

    def __init__(self, url: str) -> None:
        self.url, self.answered_all = url, False


@contextlib.contextmanager
def serving(
    door: "Door",
    host: str,
    port: int,
    *,
    patience: float = 120,
    limits: "ConnectionLimits | None" = None,
    listener: socket.socket | None = None,
) -> Iterator[Running]:
    """Serve in a thread until the block ends, then let the requests in flight finish.

    Args:
        door: the application.
        host: address to listen at.
        port: 0 takes a free one.
        patience: seconds that requests in flight may take.
        limits: of connections; the usual ones if None.
        listener: what `bind` returned for the address; None to bind here.

    Raises:
        UserError: the address cannot be listened at.
    """
    import uvicorn

    from distill.serving.connections import ConnectionLimits, protocol

    limits = limits or ConnectionLimits()
    listener = listener or bind(host, port)
    _listen(listener, host, port)
    config = uvicorn.Config(
        door,
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        loop="asyncio",
        http=cast("Any", protocol(limits)),
        ws="none",
        lifespan="on",
        server_header=False,
        proxy_headers=bool(limits.proxies),
        forwarded_allow_ips=[str(network) for network in limits.proxies],
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    bound = listener.getsockname()[1]
    running = Running(f"http://{f'[{host}]' if ':' in host else host}:{bound}/v1")
    try:
        yield running
    finally:
        running.answered_all = door.close(patience)
        server.should_exit = True
        thread.join()
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address that nobody else listens at; it does not listen yet.

    Args:
        host: a name or an address.
        port: 0 takes a free one.

    Raises:
        UserError: somebody listens there, or it is no address of this machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        raise _unavailable(host, port, error) from error
    return listener


def _listen(listener: socket.socket, host: str, port: int) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _unavailable(host, port, error) from error


def _unavailable(host: str, port: int, error: OSError | UnicodeError) -> "UserError":
    from distill.core.errors import UserError

    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    do = "choose another --host or --port, or stop what listens there"
    return UserError(f"to listen at {host}:{port}", reason, do)


def _stopped_by_signals() -> threading.Event:
    """Return what the first SIGTERM or SIGINT sets; one that comes a second later ends at once."""
    stop, first = threading.Event(), math.inf

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if not stop.is_set():
            first = time.monotonic()
            stop.set()
        elif time.monotonic() - first > AGAIN_SECONDS:
            _end_at_once()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return stop
