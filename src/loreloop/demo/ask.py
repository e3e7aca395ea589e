"""Asks held-out questions through the `openai` client, as any application would.

Questions go out together; an answer counts when its last number is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import openai

from loreloop.demo.questions import Question

MAX_ANSWER_TOKENS = 12


def share_right(base_url: str, api_key: str, model: str, questions: Sequence[Question]) -> float:
    """The share of `questions` that `model` (a base or a `tinker://` path) answers correctly, greedily."""
    return asyncio.run(_share_right(base_url, api_key, model, questions))


async def _share_right(base_url: str, api_key: str, model: str, questions: Sequence[Question]) -> float:
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key=api_key) as client:
        replies = await asyncio.gather(*(_ask(client, model, question) for question in questions))
    right = sum(question.is_answered_by(reply) for question, reply in zip(questions, replies, strict=True))
    return right / len(questions)


async def _ask(client: openai.AsyncOpenAI, model: str, question: Question) -> str:
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question.text}],
        # Enough for a sum with its result, and short enough for hundreds of questions.
        max_tokens=MAX_ANSWER_TOKENS,
        temperature=0,
    )
    return answer.choices[0].message.content or ""
