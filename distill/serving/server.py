"""Opens a model's directory and serves it on a socket until a signal; parses no arguments."""

import contextlib
import dataclasses
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import uvicorn

from distill.core import files, paths
from distill.core.errors import UserError
from distill.endpoints import session
from distill.models import hugging_face, hugging_face_vocabulary, weights
from distill.models.decoder import DecoderModel
from distill.models.programs import LocalPrograms, Program, usual
from distill.models.rows import LONGEST
from distill.models.sampling import LocalGenerator
from distill.models.saved import local_generator, open_vocabulary
from distill.serving.application import Served, application
from distill.serving.batching import Batcher, Programs
from distill.serving.connections import ConnectionLimits, protocol
from distill.serving.gate import Gate
from distill.serving.requests import Limits
from distill.test_time.answer import Answerer
from distill.training import choice
from distill.training.evaluate import students

logger = logging.getLogger(__name__)

BACKLOG = 128  # connections that the kernel keeps, and that are accepted at once
OTHER_FILES = 128  # descriptors that are no connections
REPEAT_SECONDS = 1  # a process may get one signal twice, as from its group


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is served.

    Attributes:
        host: address to listen at.
        port: 0 takes a free one.
        key: the bearer token that clients must send; None where none is needed.
        batch_size: requests that run together.
        max_wait: seconds that a request waits for others to run with.
        max_queue: requests that wait.
        compile_prompt_tokens: programs of prompts up to this are compiled first; 0 for none.
        compile_tokens: programs of completions up to this are compiled first; 0 for none.
        shutdown_seconds: time for requests in flight to finish.
        limits: of a request.
        connections: limits of connections.
    """

    host: str
    port: int
    key: str | None
    batch_size: int = 16
    max_wait: float = 0.005
    max_queue: int = 1024
    compile_prompt_tokens: int = 256
    compile_tokens: int = 256
    shutdown_seconds: float = 120
    limits: Limits = dataclasses.field(default_factory=Limits)
    connections: ConnectionLimits = dataclasses.field(default_factory=ConnectionLimits)


def run(served: Served, settings: Settings, answering: Answerer | None = None) -> bool:
    """Serve until SIGTERM or SIGINT; return whether all requests in flight were answered.

    Programs of usual lengths are compiled after the address is bound and before it is listened at.

    Args:
        served: the model of `load`.
        settings: how it is served.
        answering: answers questions by a policy; None for no such route.

    Raises:
        UserError: the address cannot be listened at.
    """
    listener = bind(settings.host, settings.port)
    programs = LocalPrograms(cast("LocalGenerator", served.generator))
    usual_programs = usual(settings.compile_prompt_tokens, settings.compile_tokens)
    compile_ahead(programs, usual_programs)
    batcher = Batcher(
        served.generator,
        batch_size=settings.batch_size,
        max_wait=settings.max_wait,
        max_queue=settings.max_queue,
        programs=programs,
    )
    gate = application(served, batcher, settings.limits, key=settings.key, answering=answering)
    total = reserve_descriptors(settings.connections.total)
    stop = _stop_on_signals()
    with serve_in_thread(
        gate,
        settings.host,
        settings.port,
        patience=settings.shutdown_seconds,
        limits=dataclasses.replace(settings.connections, total=total),
        listener=listener,
    ) as running:
        guard = "with a key" if settings.key else "without a key"
        logger.info("serving %s at %s, %s", served.name, running.url, guard)
        stop.wait()
        logger.info("shutting down")
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(gate.statuses.items()))
    logger.info("answered %d requests: %s", gate.statuses.total(), statuses or "none")
    return running.answered_all


def read_key(variable: str | None, host: str, *, fallback: str) -> str | None:
    """Return the key that clients must send, None where none is needed.

    Args:
        variable: the environment variable that the user named; None for `fallback`.
        host: address where the server listens.
        fallback: the usual variable, which may be unset where the address is a loopback one.

    Raises:
        UserError: the variable is not set, or its value cannot be sent in a header.
    """
    if variable is None and not os.environ.get(fallback, "").strip() and _is_loopback(host):
        return None
    return session.read_key(variable or fallback)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- The model -----------------------------------------------------------------------------------


def load(
    path: Path, *, name: str | None = None, batch_size: int = 16, tokens: int = LONGEST
) -> Served:
    """Return the model of a directory, ready to serve.

    Args:
        path: a directory of `weights.save` (also one that ships), of `distill export`, or of a run.
        name: the model's name for clients; that of the directory if None.
        batch_size: rows that run together.
        tokens: that a prompt and its completion may have together, where they are more than the
            model's own bound.

    Raises:
        UserError: there is no model, or it is damaged.
    """
    directory = paths.find(path, "the directory of a model")
    name = name or directory.resolve().name
    loaded = _generator(directory, batch_size)
    longest = max(loaded.longest, tokens)
    generator = dataclasses.replace(loaded, name=name, batch_size=batch_size, longest=longest)
    return Served(
        generator,
        name,
        lambda text: len(generator.tokenizer.encode(text)),
        echoes=isinstance(generator.network, DecoderModel),
    )


def _generator(directory: Path, batch_size: int) -> LocalGenerator:
    selection = directory / "reports" / "selection.json"
    if selection.is_file():
        chosen = students(directory, batch_size)(choice.read(directory)["chosen_step"])
        return cast("LocalGenerator", chosen)
    if not (directory / weights.CONFIG).is_file():
        raise UserError(
            f"a model or a run with a chosen checkpoint in {directory}",
            f"neither {weights.CONFIG} nor reports/selection.json",
            "name a directory with a model, or run `distill select` first",
        )
    found = files.read_document(directory / weights.CONFIG)
    return _exported(directory) if "model_type" in found else local_generator(directory)


def _exported(directory: Path) -> LocalGenerator:
    vocabulary = directory / hugging_face_vocabulary.SPIECE
    if not vocabulary.is_file():
        raise UserError(f"a vocabulary {vocabulary}", "none", "copy the model's spiece.model there")
    model, params = hugging_face.load(directory)
    found = hugging_face_vocabulary.read(directory)
    weights.require_exported(directory, weights.Vocabulary(vocabulary, found.extra_ids))
    return LocalGenerator(model, params, open_vocabulary(vocabulary, found.extra_ids))


def compile_ahead(
    programs: Programs, queue: Iterable[Program], *, report_seconds: float = 5
) -> None:
    """Compile programs one after another, and report how many are left.

    Args:
        programs: those of the generator.
        queue: the programs to compile, in order.
        report_seconds: least time between two reports.
    """
    waiting, start, reported = list(queue), time.monotonic(), -math.inf
    if not waiting:
        return
    count = len(waiting)
    logger.info("compiling %d programs for prompts and completions of usual lengths", count)
    for number, program in enumerate(waiting, 1):
        programs.compile(program)
        now = time.monotonic()
        if now - reported >= report_seconds and number < count:
            seconds, reported = (now - start) / number * (count - number), now
            logger.info("compiled %d of %d, about %.0f s left", number, count, seconds)
    logger.info("compiled %d programs in %.0f s", count, time.monotonic() - start)


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
def serve_in_thread(
    gate: Gate,
    host: str,
    port: int,
    *,
    patience: float = 120,
    limits: ConnectionLimits | None = None,
    listener: socket.socket | None = None,
) -> Iterator[Running]:
    """Serve in a thread until the block ends, then let the requests in flight finish.

    Args:
        gate: the application.
        host: address to listen at.
        port: 0 takes a free one.
        patience: seconds that requests in flight may take.
        limits: of connections; the usual ones if None.
        listener: what `bind` returned for the address; None to bind here.

    Raises:
        UserError: the address cannot be listened at.
    """
    limits = limits or ConnectionLimits()
    listener = listener or bind(host, port)
    _listen(listener, host, port)
    config = uvicorn.Config(
        gate,
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
        running.answered_all = gate.close(patience)
        server.should_exit = True
        thread.join()
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address that no other process listens at; it does not listen yet.

    Args:
        host: a name or an address.
        port: 0 takes a free one.

    Raises:
        UserError: another process listens there, or it is no address of this machine.
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


def _unavailable(host: str, port: int, error: OSError | UnicodeError) -> UserError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    do = "choose another --host or --port, or stop what listens there"
    return UserError(f"to listen at {host}:{port}", reason, do)


def reserve_descriptors(connections: int) -> int:
    """Raise the limit of descriptors for so many connections; return how many it allows."""
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


def exit_at_once() -> NoReturn:
    """Exit with 1 while threads of the process still compile or write."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; one more, a second later, exits at once."""
    stop, first = threading.Event(), math.inf

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if not stop.is_set():
            first = time.monotonic()
            stop.set()
        elif time.monotonic() - first > REPEAT_SECONDS:
            exit_at_once()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return stop
