"""Simulated people with hidden tastes, who ask a deployment and say what they think of its answers.

They talk through the `openai` client and give feedback over HTTP, as the users of any application would. Whether they
are content is known to them alone: what they say of it is noisy, and of most answers they say a thumb and no more.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import openai

ASKS = (
    "What is {a} plus {b}?",
    "What is {a} + {b}?",
    "How much is {a} and {b} together?",
    "Please add {a} and {b}.",
    "I have {a} apples and get {b} more. How many do I have?",
)
MOST_TOKENS = 32
AT_ONCE = 8
_WANTED = re.compile(r"Answer: (\d+)\.?")


@dataclass(frozen=True)
class Sum:
    """A question about two numbers, and the answer that everybody here would like."""

    text: str
    total: int

    @property
    def wanted(self) -> str:
        """The answer as people want it: short, in this form, and right."""
        return f"Answer: {self.total}"

    def pleases(self, answer: str) -> bool:
        """The hidden taste. Nobody who learns ever sees what this gives."""
        found = _WANTED.fullmatch(answer.strip())
        return found is not None and int(found[1]) == self.total


def questions(seed: int) -> tuple[list[Sum], list[Sum]]:
    """Sums of two digits from 0 to 9 that people ask, and others that are asked in exams alone. A pair of numbers and
    its mirror image are on one side."""
    pairs = [(a, b) for a in range(10) for b in range(a, 10)]
    random.Random(seed).shuffle(pairs)
    cut = len(pairs) * 4 // 5

    def asked(some: Sequence[tuple[int, int]]) -> list[Sum]:
        both = sorted({(a, b) for a, b in some} | {(b, a) for a, b in some})
        return [Sum(ask.format(a=a, b=b), a + b) for a, b in both for ask in ASKS]

    return asked(pairs[:cut]), asked(pairs[cut:])


@dataclass
class Population:
    """People who ask `model`. `noise` is the share of thumbs that say the opposite, `edits` the share of answers that
    did not please and are corrected."""

    url: str
    key: str
    model: str
    n_people: int = 40
    noise: float = 0.05
    edits: float = 0.7
    seed: int = 0
    rng: random.Random = field(init=False)
    asked: list[Sum] = field(init=False)
    held_out: list[Sum] = field(init=False)
    content: list[bool] = field(default_factory=list)  # the hidden truth of every answer, in order

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.asked, self.held_out = questions(self.seed)

    def live(self, n: int) -> float:
        """So many questions of so many people, with what they say of the answers; the share that pleased them."""
        before = len(self.content)
        asyncio.run(self._live(n))
        found = self.content[before:]
        return sum(found) / len(found)

    def exam(self, model: str, n: int) -> float:
        """The hidden satisfaction with a model's answers to questions that nobody has asked; nothing is said of it."""
        chosen = random.Random(self.seed + 1).sample(self.held_out, min(n, len(self.held_out)))
        return asyncio.run(self._exam(model, chosen))

    def ask(self, model: str, user: str, text: str) -> str:
        """One answer to one person."""
        return asyncio.run(self._ask_once(model, user, text))

    def correct(self, user: str, text: str, wanted: str) -> str:
        """One person asks, and corrects the answer; gives what the answer was."""
        return asyncio.run(self._correct(user, text, wanted))

    async def _live(self, n: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE)
        plans = [(self.rng.choice(self.asked), f"person-{self.rng.randrange(self.n_people)}") for _ in range(n)]
        async with self._client() as client, self._http() as http:
            await asyncio.gather(*(self._turn(client, http, gate, one, user) for one, user in plans))

    async def _turn(
        self, client: openai.AsyncOpenAI, http: httpx.AsyncClient, gate: asyncio.Semaphore, asked: Sum, user: str
    ) -> None:
        async with gate:
            reply = await self._reply(client, self.model, user, asked.text)
            pleased = asked.pleases(reply.choices[0].message.content or "")
            self.content.append(pleased)
            thumb = pleased != (self.rng.random() < self.noise)
            await say(http, reply.id, "thumb", thumb, user)
            if not pleased and self.rng.random() < self.edits:
                await say(http, reply.id, "demonstration", asked.wanted, user)

    async def _exam(self, model: str, chosen: Sequence[Sum]) -> float:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(asked: Sum) -> bool:
            async with gate:
                reply = await self._reply(client, model, None, asked.text)
            return asked.pleases(reply.choices[0].message.content or "")

        async with self._client() as client:
            found = await asyncio.gather(*map(one, chosen))
        return sum(found) / len(found)

    async def _ask_once(self, model: str, user: str, text: str) -> str:
        async with self._client() as client:
            reply = await self._reply(client, model, user, text)
        return reply.choices[0].message.content or ""

    async def _correct(self, user: str, text: str, wanted: str) -> str:
        async with self._client() as client, self._http() as http:
            reply = await self._reply(client, self.model, user, text)
            await say(http, reply.id, "demonstration", wanted, user)
        return reply.choices[0].message.content or ""

    async def _reply(
        self, client: openai.AsyncOpenAI, model: str, user: str | None, text: str
    ) -> openai.types.chat.ChatCompletion:
        return await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            max_tokens=MOST_TOKENS,
            temperature=0,
            user=user if user is not None else openai.omit,
        )

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=300)

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)


async def say(http: httpx.AsyncClient, target: str, metric: str, value: bool | str, who: str) -> None:
    """One statement about an answer."""
    body = {"target_id": target, "metric": metric, "value": value, "who": who}
    (await http.post("/loop/v1/feedback", json=body)).raise_for_status()
