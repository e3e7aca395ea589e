"""Served models as judges, asked over HTTP: for graders that run outside of the server's own processes, as in jobs.

Any server that answers OpenAI's chat completions will do. Inside a server, `http/generation/judging.py` does the same
without a connection. Knows no grader.
"""

from __future__ import annotations

from typing import Any

import httpx

from loreloop.learn.rewards.graders.grader import Chat, GraderTrouble, Question, Said
from loreloop.text.conversation import Picture, Turn

SECONDS = httpx.Timeout(600.0, connect=10.0)  # for one answer: a busy server lets a judge wait for its turn


class ServedModels:
    """Asks in the name of `key`; `base_url` is the server's address without a path. It is called with a question, as
    graders ask it. One of these may be asked many questions at once, all on one loop."""

    def __init__(self, base_url: str, key: str) -> None:
        headers = {"authorization": f"Bearer {key}"}
        # Not by a proxy of the environment, which would see the key.
        self.client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=SECONDS, trust_env=False)

    async def __call__(self, question: Question) -> Said:
        """The answer to a question. GraderTrouble where the model cannot be asked, or gives none."""
        try:
            response = await self.client.post("/v1/chat/completions", json=body_of(question))
            found = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise GraderTrouble("model_grader_server", f"{type(error).__name__}: {error}") from None
        try:
            if response.status_code != 200:
                raise GraderTrouble("model_grader_server", str(found["error"]["message"]))
            return Said(found["choices"][0]["message"]["content"] or "", found["usage"]["total_tokens"])
        except (KeyError, IndexError, TypeError):
            told = f"status {response.status_code}, {response.text[:200]!r}"
            raise GraderTrouble("model_grader_server", f"no answer of a chat completion: {told}") from None

    async def close(self) -> None:
        """Closes the connections."""
        await self.client.aclose()


def served_judge(url: str, key: str) -> Chat:
    """The same with a connection for each question, where the loop that asks may be another one each time."""

    async def chat(question: Question) -> Said:
        models = ServedModels(url, key)
        try:
            return await models(question)
        finally:
            await models.close()

    return chat


def body_of(question: Question) -> dict[str, Any]:
    """The question as a request for a chat completion; what it leaves open is left out."""
    given = {
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "seed": question.seed,
        "reasoning_effort": question.effort,
    }
    body: dict[str, Any] = {"model": question.model, "messages": [_message(turn) for turn in question.turns]}
    if question.schema is not None:
        # The grammar holds the form here, and another server is asked to hold it as well.
        schema = {"name": "answer", "schema": dict(question.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body | {name: value for name, value in given.items() if value is not None}


def _message(turn: Turn) -> dict[str, Any]:
    # Words alone stay a plain text, which every server and every template takes.
    if not turn.parts:
        return {"role": turn.role, "content": turn.content}
    return {"role": turn.role, "content": [_part(part) for part in turn.parts]}


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, Picture):
        return {"type": "image_url", "image_url": {"url": part.url}}
    return {"type": "text", "text": part}
