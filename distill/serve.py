"""Serve a model of ours behind OpenAI's HTTP API, for harvests and for trying it out.

PATH is a directory with a model: one that ships (data/models/teacher), a run directory (its chosen
checkpoint), or an exported Hugging Face directory.

The server answers /v1/completions, /v1/chat/completions, /v1/models and /health, and with --policy
/v1/answers: {"model", "question", "budget", "seed"} is answered by the policy's strategy for the
question's difficulty, as `distill answer` does, with what was spent.

A chat's last message, the user's, is the prompt as it is. The same request with the same seed gives
the same text, whoever else asks; of n completions the first has the request's seed. Log-
probabilities are the model's own, at temperature 1, whatever the temperature. SIGTERM and SIGINT
let the requests in flight finish and refuse others with 503; a second one ends at once.
"""

import argparse
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill.scaling.answer import add_arguments, answerer

if TYPE_CHECKING:
    from distill.models.sampling import LocalGenerator
    from distill.serving.application import Door, Served

logger = logging.getLogger(__name__)

KEY_VARIABLE = "DISTILL_API_KEY"
IDLE_SECONDS = 75
CONNECTIONS = 1000


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; return 0 if all requests in flight were answered, else 1.

    Raises:
        UserError: there is no such model, no such key, or the address is taken.
    """
    options = _parser().parse_args(arguments)
    key = read_key(options.api_key_variable, options.host)
    from distill.serving.application import application
    from distill.serving.asked import Limits
    from distill.serving.batching import Batcher

    served = load(Path(options.path), name=options.model, batch_size=options.batch_size)
    limits = Limits(options.max_tokens, options.max_prompt_tokens)
    batcher = Batcher(
        served.generator,
        batch_size=options.batch_size,
        max_wait=options.max_wait_ms / 1000,
        max_queue=options.max_queue,
    )
    answering = (
        answerer(options, served.generator, options.solution_tokens) if options.policy else None
    )
    door = application(served, batcher, limits, key=key, answering=answering)
    warm_up(served)
    stop = _stopped_by_signals()
    with serving(door, options.host, options.port, patience=options.shutdown_seconds) as running:
        guard = "with a key" if key else "without a key"
        logger.info("serving %s at %s, %s", served.name, running.url, guard)
        stop.wait()
        logger.info("shutting down")
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(door.answers.items()))
    logger.info("answered %d requests: %s", door.answers.total(), statuses or "none")
    return 0 if running.answered_all else 1


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
    for name, default, meaning in (
        ("batch_size", 16, "requests that run together"),
        ("max_wait_ms", 5, "milliseconds that a request waits for others to run with"),
        ("max_queue", 1024, "requests that wait; more are refused with 429"),
        ("max_tokens", 1024, "tokens of a completion, at most"),
        ("max_prompt_tokens", 2048, "tokens of a prompt, at most"),
        ("solution_tokens", 128, "tokens of a solution drawn by the policy, at most"),
        ("shutdown_seconds", 120, "how long requests in flight may take to finish"),
    ):
        parser.add_argument(
            f"--{name}", type=_positive, default=default, help=f"{meaning} (%(default)s)"
        )
    add_arguments(parser, required=False)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:10]) <= 10**7:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 10000000, got {text}")
    return int(text[:10])


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
    from distill.corpus import formats

    if variable is None and not os.environ.get(KEY_VARIABLE, "").strip() and _is_loopback(host):
        return None
    return formats.read_key(variable or KEY_VARIABLE)


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
    from distill.core.errors import UserError
    from distill.core.store import read_json
    from distill.models.sampling import local_generator
    from distill.models.weights import CONFIG

    selection = directory / "reports" / "selection.json"
    if selection.is_file():
        from distill.training.evaluate import students

        chosen = students(directory, batch_size)(read_json(selection)["chosen_step"])
        return cast("LocalGenerator", chosen)
    if not (directory / CONFIG).is_file():
        raise UserError(
            f"a model or a run with a chosen checkpoint in {directory}",
            f"neither {CONFIG} nor reports/selection.json",
            "name a directory with a model, or run `distill select` first",
        )
    found = read_json(directory / CONFIG)
    return _exported(directory) if "model_type" in found else local_generator(directory)


def _exported(directory: Path) -> "LocalGenerator":
    from distill.core.errors import UserError
    from distill.core.store import read_json
    from distill.models import hugging_face, weights
    from distill.models.sampling import LocalGenerator, open_vocabulary

    vocabulary, side = directory / "spiece.model", directory / "tokenizer_config.json"
    if not vocabulary.is_file():
        raise UserError(f"a vocabulary {vocabulary}", "none", "copy the model's spiece.model there")
    model, params = hugging_face.load(directory)
    extra_ids = read_json(side).get("extra_ids", 100) if side.is_file() else 100
    weights.require_exported(directory, weights.Vocabulary(vocabulary, extra_ids))
    return LocalGenerator(model, params, open_vocabulary(vocabulary, extra_ids))


def warm_up(served: "Served") -> None:
    """Compile what the first request needs, so that it does not wait."""
    from distill.core.ports import Request, Sampling

    for _ in served.generator.generate([Request("Q:")], Sampling(max_tokens=1)):
        pass


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
def serving(door: "Door", host: str, port: int, *, patience: float = 120) -> Iterator[Running]:
    """Serve in a thread until the block ends, then let the requests in flight finish.

    Args:
        door: the application.
        host: address to listen at.
        port: 0 takes a free one.
        patience: seconds that requests in flight may take.

    Raises:
        UserError: the address cannot be listened at.
    """
    import uvicorn

    listener = _listener(host, port)
    config = uvicorn.Config(
        door,
        log_config=None,
        access_log=False,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
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


def _listener(host: str, port: int) -> socket.socket:
    from distill.core.errors import UserError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"to listen at {host}:{port}", error.strerror or str(error), "choose another"
        ) from error


def _stopped_by_signals() -> threading.Event:
    """Return what the first SIGTERM or SIGINT sets; a second one interrupts."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return stop
