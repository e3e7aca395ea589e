"""The routes of a server that samples for others: completions as a stream, and adapters loaded and unloaded by folder.

vLLM has these routes, and SGLang has them or ones that answer alike. Written from their public documentation. Knows
nothing of engines and of ours.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from loreloop.protocol.errors import BadRequest, Unavailable

LOG = logging.getLogger(__name__)
SECONDS = 30.0  # to connect, and between two pieces of anything but a stream
STREAM_SECONDS = 600.0  # between two tokens: behind a long queue there
MOST_CONNECTIONS = 4096
ADDRESS = re.compile(r"https?://(\[[0-9a-f:]+\]|[\w.-]+)(:\d{1,5})?/?", re.IGNORECASE)
REFUSED, NOT_FOUND = (400, 413, 422), 404  # statuses of requests that are wrong themselves; of unknown models
SHOWN = 300  # characters of what a server says, in our log
ALREADY = "already"  # what is said of an adapter that is loaded


class Lost(Exception):
    """The server is not there any more, has broken off amid an answer, or cannot answer now. Says nothing of the
    request: another server may take it."""


class NotLoaded(Lost):
    """It does not know the model that was asked for, as after a new start."""


@dataclass(frozen=True)
class Listed:
    """A model that a server names; `parent` is None of a base. `root`, where it was loaded from, and `window`, in
    tokens, are None where the server does not tell."""

    name: str
    parent: str | None
    root: str | None
    window: int | None


@dataclass(frozen=True)
class Drawn:
    """One token, with its log-probability."""

    token: int
    logprob: float


class SamplerServer:
    """At one address, which must be one (BadRequest). BadRequest where a server refuses what was asked, `Lost` where it
    does not answer or cannot. What it says of its troubles is logged, and told to no client."""

    def __init__(self, url: str) -> None:
        self.url = url
        limits = httpx.Limits(max_connections=MOST_CONNECTIONS)
        timeout = httpx.Timeout(SECONDS, read=STREAM_SECONDS)
        if not ADDRESS.fullmatch(url):
            raise BadRequest(f"The sampler's address {url!r} is none; it is written like http://host:8000.")
        self._client = httpx.Client(base_url=url, timeout=timeout, limits=limits, trust_env=False)

    def models(self) -> list[Listed]:
        """What it serves, adapters among it. Unavailable where it does not answer."""
        try:
            answer = self._client.get("/v1/models", timeout=SECONDS)
            return [_listed(model) for model in answer.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"The sampler at {self.url} does not say what it serves: {error}.") from None

    def base_model(self) -> Listed:
        """Its base: the first model that has no parent. Unavailable where it does not answer, BadRequest where it
        serves none."""
        bases = [model for model in self.models() if not model.parent]
        if not bases:
            raise BadRequest(f"The sampler at {self.url} serves no base model.")
        return bases[0]

    def answers(self) -> bool:
        """Whether it is there at all."""
        try:
            self.models()
        except Unavailable:
            return False
        return True

    def load(self, name: str, folder: str) -> None:
        """Hands an adapter over by its folder, which the server must be able to read. One that it has is let be."""
        path = "/v1/load_lora_adapter"
        answer = self._post(path, {"lora_name": name, "lora_path": folder})
        if answer.is_error and ALREADY not in answer.text:
            # That it cannot read a folder is its operator's matter, and no fault of who asked for a sample.
            raise Lost(self._trouble(path, answer))

    def unload(self, name: str) -> None:
        """Has an adapter forgotten; one that is not there is no error."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def tokens(self, body: dict[str, object], is_over: Callable[[], bool]) -> Iterator[Drawn]:
        """The tokens of one completion as they come. When `is_over` says so, the connection is closed, which ends the
        request there."""
        path = "/v1/completions"
        try:
            with self._client.stream("POST", path, json=body | {"stream": True}) as answer:
                if answer.is_error:
                    answer.read()
                    self._refuse(path, answer)
                for line in answer.iter_lines():
                    if is_over() or line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        yield from _drawn(line[6:])
        except httpx.HTTPError as error:
            raise Lost(f"the sampler at {self.url} has broken off: {error!r}") from None
        # Only the last line says that nothing was lost on the way.
        raise Lost(f"the sampler at {self.url} ended a stream without its last line")

    def _refuse(self, path: str, answer: httpx.Response) -> NoReturn:
        trouble = self._trouble(path, answer)
        if answer.status_code in REFUSED:
            LOG.warning("%s", trouble)
            raise BadRequest(
                "The sampler outside refuses this sample: a parameter, or the length of the prompt. The server's log "
                "has its reason."
            )
        raise (NotLoaded if answer.status_code == NOT_FOUND else Lost)(trouble)

    def _trouble(self, path: str, answer: httpx.Response) -> str:
        return f"the sampler at {self.url} answers {path} with {answer.status_code}: {answer.text[:SHOWN]!r}"

    def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        try:
            return self._client.post(path, json=body, timeout=SECONDS)
        except httpx.HTTPError as error:
            raise Lost(f"the sampler at {self.url} does not answer {path}: {error!r}") from None


def _listed(model: Any) -> Listed:
    if not isinstance(model, dict):
        raise TypeError(f"{model!r:.{SHOWN}} is no model")
    root, window = model.get("root"), model.get("max_model_len")
    return Listed(
        name=str(model["id"]),
        parent=model.get("parent"),
        root=root if isinstance(root, str) else None,
        window=window if isinstance(window, int) else None,
    )


def _drawn(data: str) -> list[Drawn]:
    try:
        message = json.loads(data)
        if "error" in message:
            raise Lost(f"the sampler ended a sample: {str(message['error'])[:SHOWN]!r}")
        (choice,) = message["choices"]
        ids = choice.get("token_ids") or []
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        return [Drawn(int(token), float(logprob)) for token, logprob in zip(ids, logprobs, strict=True)]
    except (ValueError, KeyError, TypeError) as error:
        raise Lost(f"the sampler sent what is no piece of a completion with ids and logprobs: {error}") from None
