"""Measure the harvest: that faults lose nothing, requests a second, memory, time beside the model.

python benchmarks/harvest.py faults       # a server that fails, dies and returns; harvesters killed
python benchmarks/harvest.py throughput   # requests a second against a server that does nothing
python benchmarks/harvest.py memory       # resident memory over 100,000 requests
python benchmarks/harvest.py waste        # share of the wall time outside the built-in teacher

`faults` needs the repository's tests, whose endpoint injects the faults; all else needs only the
package. Everything runs on loopback.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from distill.core.ports import Sampling
from distill.core.records import Problem, Trace
from distill.core.store import Shards, Stage
from distill.endpoints.teacher import OpenAICompatible
from distill.traces import harvest

FAULTY = Path(__file__).resolve().parent.parent / "tests/fake_endpoint.py"
SAMPLING = Sampling(temperature=0.7, max_tokens=64)
VECTORS = ("logprobs", "top_logprobs", "top_ends")
PLAIN = ("prompt", "text", "tokens", "top_tokens", "finish_reason", "seed")
KEY = {"OPENAI_API_KEY": "sk-loopback-benchmark"}


def ready(run_dir: Path, count: int) -> Path:
    """Write a run directory with so many made-up problems."""
    problems = [
        Problem(f"made/train/{n}", "made", "train", f"Question {n}?", "3") for n in range(count)
    ]
    with Stage.open(run_dir, "problems", settings={"count": count}) as stage:
        Shards(run_dir / "problems", Problem).append(problems)
        stage.finish(problems=count)
    return run_dir


def teacher(url: str, **settings: object) -> OpenAICompatible:
    """Return the endpoint that all parts ask."""
    settings = {"backoff": 0.05, "timeout": 30.0, "max_retries": 12, **settings}
    return OpenAICompatible("m", url, "completions", **settings)


def worker(options: argparse.Namespace) -> None:
    """Harvest in this process; the other parts start and kill it."""
    harvest.run(
        run_dir=options.run_dir,
        generator=teacher(options.url, concurrency=options.concurrency),
        samples=options.samples,
        sampling=SAMPLING,
        shard_traces=options.shard,
    )


def started(run_dir: Path, url: str, samples: int, **flags: object) -> subprocess.Popen:
    """Start a worker."""
    command = [sys.executable, __file__, "worker", str(run_dir), url, f"--samples={samples}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.Popen(command, env={**os.environ, **KEY})


# --- Faults ------------------------------------------------------------------------------------


class Failing:
    """The tests' faulty endpoint in a process of its own, killed and started again at a beat.

    Attributes:
        url: its address, the same after each start.
        deaths: how often it was killed.
    """

    def __init__(self, beat: float) -> None:
        self.deaths = 0
        self._process, self.url = self._begun(0)
        self._port = self.url.rpartition(":")[2].partition("/")[0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._reborn, args=(beat,), daemon=True)
        self._thread.start()

    def _begun(self, port: int | str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, str(FAULTY), f"--port={port}", f"--seed={self.deaths}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    def _reborn(self, beat: float) -> None:
        while not self._ended.wait(beat):
            self._process.kill()
            self._process.wait()
            self.deaths += 1
            self._process, _ = self._begun(self._port)

    def close(self) -> None:
        """End it for good."""
        self._ended.set()
        self._thread.join()
        self._process.kill()
        self._process.wait()


def killed_at(run_dir: Path, url: str, samples: int, least: int) -> bool:
    """Run a worker, kill it once so many traces are on disk; return whether it was killed."""
    with started(run_dir, url, samples, shard=64) as process:
        while process.poll() is None and len(Shards(run_dir / "traces", Trace)) < least:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def traces(run_dir: Path) -> tuple[int, dict[tuple[str, int], object]]:
    """Return the number of traces and their values by key."""
    found, count = {}, 0
    for trace in Shards(run_dir / "traces", Trace):
        plain = tuple(getattr(trace, name) for name in PLAIN)
        vectors = tuple(getattr(trace, name).tobytes() for name in VECTORS)
        found[trace.problem_id, trace.sample] = (*plain, *vectors)
        count += 1
    return count, found


def calm(run_dir: Path, count: int, samples: int) -> Path:
    """Harvest from the same endpoint without faults."""
    sys.path.insert(0, str(FAULTY.parent))
    from fake_endpoint import endpoint

    os.environ |= KEY
    with endpoint(quirks=True) as server:
        harvest.run(
            run_dir=ready(run_dir, count),
            generator=teacher(server.url),
            samples=samples,
            sampling=SAMPLING,
        )
    return run_dir


def faults(options: argparse.Namespace) -> None:
    """Harvest over a failing server with kills and compare with an undisturbed harvest."""
    wanted = options.problems * options.samples
    with tempfile.TemporaryDirectory() as scratch:
        disturbed = ready(Path(scratch) / "disturbed", options.problems)
        begun = time.monotonic()
        server = Failing(options.beat)
        try:
            at = [wanted * n // (options.kills + 1) for n in range(1, options.kills + 1)]
            kills = sum(killed_at(disturbed, server.url, options.samples, n) for n in at)
            with started(disturbed, server.url, options.samples) as process:
                pass
        finally:
            server.close()
        seconds = time.monotonic() - begun
        undisturbed = calm(Path(scratch) / "calm", options.problems, options.samples)
        count, found = traces(disturbed)
        _, expected = traces(undisturbed)
        print(f"{wanted} traces, {kills} kills of the harvester, {server.deaths} of the server")
        print(f"ended with {process.returncode} after {seconds:.0f} s")
        print(f"on disk {count}, duplicates {count - len(found)}, holes {wanted - len(found)}")
        print(f"equal to an undisturbed harvest: {found == expected}")


# --- Throughput and memory ---------------------------------------------------------------------


def null_answer(tokens: int) -> bytes:
    """Return an HTTP response with a completion of so many tokens and five candidates each."""
    names = [" four", " and", " makes", "\n", " so"]
    written = [names[n % len(names)] for n in range(tokens)]
    tops = [{name: -0.5 - rank for rank, name in enumerate(names)} for _ in written]
    told = {"tokens": written, "token_logprobs": [-0.5] * tokens, "top_logprobs": tops}
    choice = {"index": 0, "text": "".join(written), "logprobs": told, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": tokens}
    body = json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class Null(asyncio.Protocol):
    """Answers every request alike, as fast as Python can."""

    def __init__(self, answer: bytes) -> None:
        self._answer, self._read = answer, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Keep where to write."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request that has come."""
        self._read += data
        while (at := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:at].lower()
            place = head.find(b"content-length:")
            size = int(head[place + 15 :].split(b"\r\n")[0]) if place >= 0 else 0
            if len(self._read) < at + 4 + size:
                return
            self._read = self._read[at + 4 + size :]
            self._transport.write(self._answer)


def null(options: argparse.Namespace) -> None:
    """Serve nothing but one answer; print the address first."""

    async def serve() -> None:
        loop, answer = asyncio.get_running_loop(), null_answer(options.tokens)
        server = await loop.create_server(lambda: Null(answer), "127.0.0.1", 0)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()

    asyncio.run(serve())


@contextlib.contextmanager
def null_server(tokens: int) -> Iterator[str]:
    """Run the server that does nothing in a process of its own; yield its address."""
    command = [sys.executable, __file__, "null", f"--tokens={tokens}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def throughput(options: argparse.Namespace) -> None:
    """Print requests per second of wall time and of the harvester's processor time, once warm."""
    os.environ |= KEY
    with tempfile.TemporaryDirectory() as scratch, null_server(options.tokens) as url:
        asked = {"generator": teacher(url, concurrency=options.concurrency), "sampling": SAMPLING}
        harvest.run(run_dir=ready(Path(scratch) / "warm", 20), samples=8, **asked)
        run_dir = ready(Path(scratch) / "timed", options.requests // 8)
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        count = harvest.run(run_dir=run_dir, samples=8, **asked)["traces"]
        seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{count} requests of {options.tokens} tokens, onto disk, in {seconds:.1f} s: "
        f"{count / seconds:.0f} a second; {count / busy:.0f} a second of the harvester's "
        f"processor time; load {os.getloadavg()[0]:.1f}"
    )


def resident(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(options: argparse.Namespace) -> None:
    """Print a harvester's resident memory at each tenth of its requests."""
    with tempfile.TemporaryDirectory() as scratch, null_server(options.tokens) as url:
        run_dir = ready(Path(scratch), options.requests // 8)
        flags = {"concurrency": options.concurrency, "shard": 512}
        with started(run_dir, url, 8, **flags) as process:
            samples = list(_sampled(process, run_dir, options.requests))
        print(f"after {len(Shards(run_dir / 'traces', Trace))} requests: {process.returncode}")
    late = [mib for done, mib in samples if done >= options.requests // 5]
    growth = (late[-1] - late[0]) / late[0]
    print(f"from a fifth on: {late[0]:.0f} to {late[-1]:.0f} MiB, {100 * growth:+.1f} %")


def _sampled(process: subprocess.Popen, run_dir: Path, wanted: int) -> Iterator[tuple[int, float]]:
    """Yield (requests on disk, MiB) at each tenth of the requests, and print them."""
    tenths = 0
    while process.poll() is None:
        done, mib = len(Shards(run_dir / "traces", Trace)), resident(process.pid)
        if done * 10 // wanted > tenths and done < wanted:
            tenths = done * 10 // wanted
            print(f"{done:7d} requests: {mib:.0f} MiB", flush=True)
            yield done, mib
        time.sleep(0.2)


# --- Beside the model --------------------------------------------------------------------------


def waste(options: argparse.Namespace) -> None:
    """Harvest from the built-in teacher in process; print the time in which it did not run."""
    from distill.models import decoding
    from distill.models.saved import SavedModel
    from distill.problems import problems

    spans: list[tuple[float, float]] = []
    decode = decoding.decode

    def timed(*arguments: object, **named: object) -> object:
        begun = time.monotonic()
        try:
            return decode(*arguments, **named)
        finally:
            spans.append((begun, time.monotonic()))

    decoding.decode = timed
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch)
        problems.run(run_dir=run_dir, sources=(problems.BuiltIn("gsm", "train", options.problems),))
        begun = time.monotonic()
        summary = harvest.run(
            run_dir=run_dir,
            generator=SavedModel("data/models/teacher"),
            samples=options.samples,
            sampling=Sampling(temperature=0.7, max_tokens=160),
        )
        seconds = time.monotonic() - begun
    busy = sum(end - start for start, end in spans)
    first = spans[0][0] - begun
    print(
        f"{summary['traces']} traces, {summary['tokens']} tokens in {seconds:.1f} s, of which the "
        f"model ran {busy:.1f} s: {100 * (1 - busy / seconds):.1f} % outside it"
    )
    print(f"{first:.1f} s of that before the first batch; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True, metavar="PART")
    flags: dict[object, dict[str, object]] = {
        faults: {"problems": 2000, "samples": 8, "kills": 5, "beat": 15.0},
        throughput: {"requests": 20_000, "tokens": 32, "concurrency": 64},
        memory: {"requests": 100_000, "tokens": 8, "concurrency": 64},
        waste: {"problems": 400, "samples": 4},
        worker: {"samples": 8, "shard": 512, "concurrency": 16},
        null: {"tokens": 32},
    }
    for part, defaults in flags.items():
        added = parts.add_parser(part.__name__, help=part.__doc__)
        added.set_defaults(part=part)
        for name, value in defaults.items():
            added.add_argument(f"--{name}", type=type(value), default=value, help="%(default)s")
        if part is worker:
            added.add_argument("run_dir", type=Path)
            added.add_argument("url")
    options = parser.parse_args()
    options.part(options)


if __name__ == "__main__":
    main()
