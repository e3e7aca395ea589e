"""The routes of a server that samples for others: completions as a stream, and adapters loaded and unloaded by folder.

vLLM has these routes, and SGLang has them or ones that answer alike. Written from their public documentation. Knows
nothing of engines and of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from loreloop.protocol.errors import BadRequest, Unavailable

SECONDS = 30.0  # to connect, and between two pieces of anything but a stream
STREAM_SECONDS = 600.0  # between two tokens: behind a long queue there
MOST_CONNECTIONS = 4096
ADDRESS = re.compile(r"https?://(\[[0-9a-f:]+\]|[\w.-]+)(:\d{1,5})?/?", re.IGNORECASE)
ALREADY = "already"  # what is said of an adapter that is loaded


class Lost(Exception):
    """The server is not there any more, or has broken off amid an answer."""


@dataclass(frozen=True)
class Drawn:
    """One token, with its log-probability."""

    token: int
    logprob: float


class SamplerServer:
    """At one address, which must be one (BadRequest). BadRequest where a server refuses, `Lost` where none answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        limits = httpx.Limits(max_connections=MOST_CONNECTIONS)
        timeout = httpx.Timeout(SECONDS, read=STREAM_SECONDS)
        if not ADDRESS.fullmatch(url):
            raise BadRequest(f"The sampler's address {url!r} is none; it is written like http://host:8000.")
        self._client = httpx.Client(base_url=url, timeout=timeout, limits=limits, trust_env=False)

    def base_model(self) -> str:
        """The name under which it serves its base: the first model that has no parent. Unavailable where it does not
        answer, BadRequest where it serves none."""
        try:
            answer = self._client.get("/v1/models", timeout=SECONDS)
            names = [str(model["id"]) for model in answer.raise_for_status().json()["data"] if not model.get("parent")]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"The sampler at {self.url} does not say what it serves: {error}.") from None
        if not names:
            raise BadRequest(f"The sampler at {self.url} serves no base model.")
        return names[0]

    def load(self, name: str, folder: str) -> None:
        """Hands an adapter over by its folder, which the server must be able to read. One that it has is let be."""
        answer = self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        if answer.is_error and ALREADY not in answer.text:
            raise BadRequest(f"The sampler at {self.url} does not take the adapter {name}: {_words(answer)}")

    def unload(self, name: str) -> None:
        """Has an adapter forgotten; one that is not there is no error."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def tokens(self, body: dict[str, object], is_over: Callable[[], bool]) -> Iterator[Drawn]:
        """The tokens of one completion as they come. When `is_over` says so, the connection is closed, which ends the
        request there."""
        try:
            with self._client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
                if answer.is_error:
                    answer.read()
                    raise BadRequest(f"The sampler at {self.url} refuses a sample: {_words(answer)}")
                for line in answer.iter_lines():
                    if is_over() or line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        yield from _drawn(line[6:])
        except httpx.HTTPError as error:
            raise Lost(f"the sampler at {self.url} has broken off: {error}") from None
        # Only the last line says that nothing was lost on the way.
        raise Lost(f"the sampler at {self.url} ended a stream without its last line")

    def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        try:
            return self._client.post(path, json=body, timeout=SECONDS)
        except httpx.HTTPError as error:
            raise Lost(f"the sampler at {self.url} does not answer {path}: {error}") from None


def _drawn(data: str) -> list[Drawn]:
    try:
        message = json.loads(data)
        if "error" in message:
            raise BadRequest(f"The sampler ended a sample: {message['error']}")
        (choice,) = message["choices"]
        ids = choice.get("token_ids") or []
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        return [Drawn(int(token), float(logprob)) for token, logprob in zip(ids, logprobs, strict=True)]
    except (ValueError, KeyError, TypeError) as error:
        raise Lost(f"the sampler sent what is no piece of a completion with ids and logprobs: {error}") from None


def _words(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.text[:300]}"
