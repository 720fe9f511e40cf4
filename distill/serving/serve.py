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
import functools
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from distill.test_time.answer_command import add_arguments, answerer

KEY_VARIABLE = "DISTILL_API_KEY"


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; return 0, or exit with 1 where requests were not answered.

    Raises:
        UserError: there is no such model, no such key, or the address is taken.
    """
    options = _parser().parse_args(arguments)
    # JAX and the server are imported here, so that --help is quick.
    from distill.serving import server
    from distill.serving.connections import ConnectionLimits
    from distill.serving.requests import Limits

    key = server.read_key(options.api_key_variable, options.host, fallback=KEY_VARIABLE)
    served = server.load(
        Path(options.path),
        name=options.model,
        batch_size=options.batch_size,
        tokens=options.max_prompt_tokens + options.max_tokens,
    )
    settings = server.Settings(
        options.host,
        options.port,
        key,
        batch_size=options.batch_size,
        max_wait=options.max_wait_ms / 1000,
        max_queue=options.max_queue,
        compile_prompt_tokens=options.compile_prompt_tokens,
        compile_tokens=options.compile_tokens,
        shutdown_seconds=options.shutdown_seconds,
        limits=Limits(
            options.max_tokens, options.max_prompt_tokens, body_seconds=options.body_seconds
        ),
        connections=ConnectionLimits(
            total=options.connections,
            per_address=options.connections_per_address,
            head_seconds=options.head_seconds,
            body_seconds=options.body_seconds,
            idle_seconds=options.idle_seconds,
            write_seconds=options.write_seconds,
            proxies=tuple(options.proxy),
        ),
    )
    solution_tokens = options.solution_tokens
    answering = answerer(options, served.generator, solution_tokens) if options.policy else None
    if not server.run(served, settings, answering):
        server.exit_at_once()
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


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected an address or a network as 10.0.0.0/24, got {text}"
        ) from error


def _port(text: str) -> int:
    if not text.isdecimal() or int(text[:10]) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return int(text[:10])
