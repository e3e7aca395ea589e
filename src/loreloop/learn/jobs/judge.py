"""A served model as a judge, asked over the server's own chat route, as the key that a job belongs to."""

from __future__ import annotations

from typing import Any

import httpx

from loreloop.learn.rewards.graders.grader import GraderTrouble, Question, Said

READ_SECONDS = 300.0  # a judge may wait for its turn beside others


class Judge:
    """Asks models of the server at `url`; `secret` is the job's."""

    def __init__(self, url: str, secret: str) -> None:
        timeout = httpx.Timeout(10, read=READ_SECONDS)
        headers = {"authorization": f"Bearer {secret}"}
        # Not by a proxy of the environment, which would see the key.
        self.client = httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=timeout, trust_env=False)

    async def __call__(self, question: Question) -> Said:
        """The answer to a question. GraderTrouble where the model cannot be asked."""
        try:
            answer = await self.client.post("/chat/completions", json=body_of(question))
        except httpx.HTTPError as error:
            raise GraderTrouble("model_grader_server", f"{type(error).__name__}: {error}") from error
        told = answer.json()
        if answer.status_code != 200:
            raise GraderTrouble("model_grader_server", told["error"]["message"])
        return Said(told["choices"][0]["message"]["content"] or "", told["usage"]["total_tokens"])

    async def close(self) -> None:
        """Hangs up."""
        await self.client.aclose()


def body_of(question: Question) -> dict[str, Any]:
    """A question as OpenAI's chat route takes it; what it leaves open is left out."""
    body: dict[str, Any] = {
        "model": question.model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in question.turns],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "seed": question.seed,
        "reasoning_effort": question.effort,
    }
    if question.schema:
        schema = {"name": "grade", "schema": dict(question.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if value is not None}
