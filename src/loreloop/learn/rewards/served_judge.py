"""Models that graders ask, by the clients' door: OpenAI's chat route of the server that also trains.

Inside a server, `http/generation/judging.py` does the same without a connection. Knows no grader.
"""

from __future__ import annotations

from typing import Any

import httpx

from loreloop.learn.rewards.graders.grader import Chat, GraderTrouble, Question, Said

SECONDS = 600.0  # for one answer: a judge may wait behind all that is being sampled


def served_judge(url: str, key: str) -> Chat:
    """Asks the models of the server at `url`, as the key."""

    async def chat(question: Question) -> Said:
        body = {
            "model": question.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in question.turns],
            **_options(question),
        }
        try:
            # A connection for each question: the loop that asks may be another one each time.
            async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as http:
                reply = await http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        except httpx.HTTPError as error:
            raise GraderTrouble("model_grader_server", f"{type(error).__name__}: {error}") from error
        if reply.is_error:
            raise GraderTrouble("model_grader_server", f"{reply.status_code}: {reply.text[:500]}")
        answer = reply.json()
        return Said(answer["choices"][0]["message"]["content"] or "", answer["usage"]["total_tokens"])

    return chat


def _options(question: Question) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_completion_tokens": question.max_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "seed": question.seed,
        "reasoning_effort": question.effort,
    }
    if question.schema is not None:
        held = {"name": "answer", "schema": dict(question.schema), "strict": True}
        options["response_format"] = {"type": "json_schema", "json_schema": held}
    return {name: value for name, value in options.items() if value is not None}
