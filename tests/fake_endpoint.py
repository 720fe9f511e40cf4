"""An OpenAI-compatible endpoint on loopback whose model is a hash, with faults on request."""

import argparse
import contextlib
import hashlib
import json
import math
import random
import re
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = {"limit": 0.1, "fault": 0.05, "cut": 0.02, "malformed": 0.01}
KEY = "sk-loopback-0123456789"


def digest(*parts):
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def sample(prompt, seed, k=5):
    """Return [(bytes, logprob, [(bytes, logprob)])], the same for the same prompt and seed."""
    a, b = digest(prompt, seed, "a") % 40, digest(prompt, seed, "b") % 40
    text = f"I add {a} and {b} 🙂, which makes {a + b}.\nThe answer is {a + b}.\n\nQ: What next?"
    pieces = re.findall(rb" ?[A-Za-z]+|\d|\.\n\n|\xf0\x9f| ?\xf0|[\x80-\xff]+|.|\n", text.encode())
    tokens = []
    for n, piece in enumerate(pieces):
        # What the first token may be depends on the prompt alone, as with any model.
        first = 0.5 + digest(prompt, seed if n else 0, n) % 400 / 1000
        names = [piece, *(f" w{digest(n, i) % 1000}-{i}".encode() for i in range(k - 1))]
        top = [
            (name, math.log(first if i == 0 else (1 - first) / 8)) for i, name in enumerate(names)
        ]
        tokens.append((piece, top[0][1], top))
    return tokens


def escaped(piece):
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class Endpoint(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, faults=None, quirks=False, port=0, seed=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.faults, self.quirks, self.random = faults or {}, quirks, random.Random(seed)
        self.lock, self.seen = threading.Lock(), []
        self.override = self.tempered = self.begun_status = self.card = None
        self.files, self.batches = {}, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def draw(self):
        with self.lock:
            chance = self.random.random()
        for name, rate in self.faults.items():
            chance -= rate
            if chance < 0:
                return name
        return None

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError | ValueError):  # The client is gone.
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        batches, files = self.server.batches, self.server.files
        parts = self.path.split("?")[0].split("/")[2:]
        if parts == ["batches"]:
            page = {"object": "list", "data": list(batches.values()), "has_more": False}
            return self.reply(200, page)
        if parts[0] == "models":
            missing = {"error": {"message": "no such model"}}
            return (
                self.reply(200, self.server.card) if self.server.card else self.reply(404, missing)
            )
        if parts[0] == "batches":
            return self.reply(200, advanced(self.server, batches[parts[1]]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(files[parts[1]])))
        self.end_headers()
        self.wfile.write(files[parts[1]])

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/files":
            return self.reply(200, {"id": keep(self.server, raw), "object": "file"})
        body = json.loads(raw)
        if self.path == "/v1/batches":
            return self.reply(200, begun(self.server, body))
        fault = self.server.draw()
        with self.server.lock:
            self.server.seen.append((self.path, body, self.headers["Authorization"], fault))
        if self.server.override and (answer := self.server.override(self.path, body)):
            return self.reply(*answer)
        if fault == "limit":
            return self.reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})
        if fault == "fault":
            return self.reply(500, {"error": {"message": "oops"}})
        make = chat_choice if "chat" in self.path else completion_choice
        choice = make(body, quirks=self.server.quirks, tempered=self.server.tempered)
        usage = {"prompt_tokens": 10, "completion_tokens": 20}
        answer = {"id": "x", "model": body["model"], "system_fingerprint": "fp_1"}
        answer |= {"choices": [choice], "usage": usage}
        if "prompt_logprobs" in body:
            chat = "chat" in self.path
            (answer if chat else choice)["prompt_logprobs"] = of_prompt(body, chat=chat)
        return self.reply(200, answer, fault=fault)

    def reply(self, status, answer, headers=None, fault=None):
        content = json.dumps(answer).encode()
        if fault == "malformed":
            content = content[: len(content) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(content)


def keep(server, raw):
    """Keep a file; of a multipart upload the JSON lines."""
    lines = [line for line in raw.splitlines() if line.startswith(b"{")]
    name = f"file-{len(server.files)}"
    server.files[name] = b"".join(line + b"\n" for line in lines)
    return name


def begun(server, body):
    name = f"batch_{len(server.batches)}"
    made = {"id": name, "object": "batch", "status": "in_progress", "created_at": 0}
    if server.begun_status == "failed":
        made |= {"status": "failed", "errors": {"data": [{"message": "too many"}]}}
    server.batches[name] = {**made, **body}
    return server.batches[name]


def advanced(server, batch):
    """Answer a batch at the second look; faults leave requests without an answer."""
    if batch["status"] == "in_progress" and batch.setdefault("looks", 0):
        answers, errors = [], []
        for line in server.files[batch["input_file_id"]].splitlines():
            asked = json.loads(line)
            make = chat_choice if "chat" in asked["url"] else completion_choice
            answer = {"choices": [make(asked["body"], quirks=server.quirks)]}
            if fault := server.draw():
                body = {"error": {"message": "busy", "code": fault}}
                response = {"status_code": 429 if fault == "limit" else 500, "body": body}
                errors.append({"custom_id": asked["custom_id"], "response": response})
            else:
                response = {"status_code": 200, "body": answer}
                answers.append({"custom_id": asked["custom_id"], "response": response})
            server.seen.append((asked["url"], asked["body"], None, fault))
        for name, rows in (("output_file_id", answers[::-1]), ("error_file_id", errors)):
            batch[name] = keep(server, b"\n".join(json.dumps(row).encode() for row in rows))
        batch["status"] = "completed"
    batch["looks"] = batch.get("looks", 0) + 1
    return batch


def heated(body, tokens, tempered):
    """Report log-probabilities at the request's temperature, as some servers do."""
    heat = body.get("temperature", 1.0) if tempered else 1.0
    return [(p, x / heat, [(name, y / heat) for name, y in top]) for p, x, top in tokens]


def finish(body, tokens):
    """Apply max_tokens as a server does: a character cut at the end is not in the text."""
    kept = tokens[: body["max_tokens"]]
    text = b"".join(piece for piece, _, _ in kept).decode(errors="ignore")
    return kept, text, "length" if len(kept) < len(tokens) else "stop"


def quirk(body, n):
    """A token's deviation, the same whenever the same request is sent."""
    return ("fewer", "sentinel", "null", None)[min(digest(body.get("seed"), n) % 20, 3)]


def written(body, prompt, prefix, tempered):
    """Return the tokens after a prefix that the model would write, or of a new text after it.

    A first token that is asked for hot is drawn among its candidates.
    """
    tokens = sample(prompt, body["seed"])
    at = [b"".join(piece for piece, *_ in tokens[:n]) for n in range(len(tokens))]
    if prefix.encode() in at:
        tokens = tokens[at.index(prefix.encode()) :]
    else:
        tokens = sample(prompt + prefix, body["seed"])
    if body.get("temperature", 1.0) > 2 and body["max_tokens"] == 1:
        _, _, top = tokens[0]
        name, nats = random.Random(body["seed"]).choice(top[: body.get("top_k") or None])
        tokens[0] = (name, nats, top)
    return heated(body, tokens, tempered)


def pieces_of(text):
    return re.findall(r" ?[A-Za-z']+|\d|.|\n", text)


def of_prompt(body, *, chat):
    """Return the log-probabilities of a prompt's tokens as vLLM does."""
    if chat:
        prompt = "<|user|>" + "<|assistant|>".join(m["content"] for m in body["messages"])
    else:
        prompt = body["prompt"]
    entries = [None]
    for n, piece in enumerate(pieces_of(prompt)[1:]):
        nats = -(digest(piece) % 4000) / 1000
        own = {"logprob": nats, "rank": 1 + n % 7, "decoded_token": piece}
        other = {"logprob": -7.5, "rank": 2, "decoded_token": "zz"}
        entries.append({str(digest(piece)): own, "7": other})
    return entries


def completion_choice(body, *, quirks, tempered=False):
    if body.get("echo"):
        return echoed(body)
    drawn = written(body, body["prompt"], body.get("completion_prefix", ""), tempered)
    tokens, text, reason = finish(body, drawn)
    odd = [quirk(body, n) if quirks else None for n in range(len(tokens))]
    tops = [
        {escaped(name): x for name, x in top[: 2 if what == "fewer" else body["logprobs"]]}
        for (_, _, top), what in zip(tokens, odd, strict=True)
    ]
    nats = [
        -9999.0 if what == "sentinel" else x for (_, x, _), what in zip(tokens, odd, strict=True)
    ]
    names = [escaped(piece) for piece, _, _ in tokens]
    logprobs = {"tokens": names, "token_logprobs": nats, "top_logprobs": tops}
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}


def echoed(body):
    pieces = pieces_of(body["prompt"])
    nats = [None, *(-(digest(piece) % 4000) / 1000 for piece in pieces[1:]), -0.25]
    tops = [None, *({p: x, "zz": -7.5} for p, x in zip(pieces[1:], nats[1:], strict=False))]
    more = {"\n": -0.25, "<|endoftext|>": -1.5}
    tokens = [*pieces, "\n"]
    logprobs = {"tokens": tokens, "token_logprobs": nats, "top_logprobs": [*tops, more]}
    text = body["prompt"] + "\n"
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}


def chat_choice(body, *, quirks, tempered=False):
    prompt, prefix = body["messages"][0]["content"], ""
    if body.get("continue_final_message"):
        prefix = body["messages"][-1]["content"]
    tokens, text, reason = finish(body, written(body, prompt, prefix, tempered))

    def named(piece, x, missing):
        raw = None if missing else list(piece)
        return {"token": piece.decode(errors="replace"), "bytes": raw, "logprob": x}

    content = []
    for n, (piece, x, top) in enumerate(tokens):
        what = quirk(body, n) if quirks else None
        missing = what == "null"
        kept = top[: 2 if what == "fewer" else body["top_logprobs"]]
        item = named(piece, -9999.0 if what == "sentinel" else x, missing)
        content.append({**item, "top_logprobs": [named(*pair, missing) for pair in kept]})
    message = {"role": "assistant", "content": text}
    return {"message": message, "logprobs": {"content": content}, "finish_reason": reason}


@contextlib.contextmanager
def endpoint(**settings):
    with Endpoint(**settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server = Endpoint(FAULTS, True, options.port, options.seed)
    print(server.url, flush=True)
    server.serve_forever()
