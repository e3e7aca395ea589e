"""A stand-in for a vLLM server: the routes that a sampler outside is asked by, over plain arithmetic."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def token_at(model: str, seed: int, position: int) -> int:
    """What is drawn at a position of a text, prompt included: so a text goes on alike wherever it is taken up."""
    return 10 + (len(model) * 31 + seed * 7 + position * 13) % 300


class Sampler(ThreadingHTTPServer):
    """`adapters` are those that are loaded, `log` what was asked in order. `refusals` are answered to completions, one
    after another, `told` is what it tells of its base besides, and `instead` is sent in place of tokens."""

    daemon_threads = True

    def __init__(self, token_seconds: float, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.token_seconds = token_seconds
        self.adapters: dict[str, str] = {}
        self.log: list[tuple[str, Any]] = []
        self.broken = False
        self.refusals: list[int] = []
        self.told: dict[str, Any] = {}
        self.instead: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Sampler

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        base = {"id": "their-name", "parent": None} | self.server.told
        adapters = [{"id": name, "parent": "their-name"} for name in self.server.adapters]
        self._answer(503 if self.server.broken else 200, {"data": [base, *adapters]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.log.append((self.path, body))
        match self.path:
            case "/v1/load_lora_adapter" if not Path(body["lora_path"], "adapter_config.json").exists():
                self._answer(404, {"error": "no adapter there"})
            case "/v1/load_lora_adapter":
                self.server.adapters[body["lora_name"]] = body["lora_path"]
                self._answer(200, {})
            case "/v1/unload_lora_adapter":
                self._answer(200 if self.server.adapters.pop(body["lora_name"], None) else 404, {})
            case "/v1/completions" if self.server.refusals:
                self._answer(self.server.refusals.pop(), {"error": "raw words"})
            case "/v1/completions" if body["model"] not in {"their-name", *self.server.adapters}:
                self._answer(404, {"error": f"no model {body['model']}"})
            case "/v1/completions":
                self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        start = len(body["prompt"])
        for position in range(start, start + body["max_tokens"]):
            if self.server.instead:
                self.wfile.write(f"data: {self.server.instead.pop()}\n\n".encode())
                return
            if self.server.broken:
                return
            token = token_at(body["model"], body["seed"], position)
            choice = {"index": 0, "text": "", "token_ids": [token], "logprobs": {"token_logprobs": [-position / 100]}}
            try:
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            except OSError:  # the client has enough
                return
            if token in body["stop_token_ids"]:
                break
            time.sleep(self.server.token_seconds)
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def sampler(token_seconds: float = 0.0, port: int = 0) -> Iterator[Sampler]:
    """One that runs in a thread."""
    running = Sampler(token_seconds, port)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield running
    finally:
        running.broken = True
        running.shutdown()
        running.server_close()
        thread.join()
