"""`python -m bench.learn_preferences`: DPO and KTO on pairs of the default model's own answers, by a taste for short
ones.

The base model answers each question a few times; of its answers the best by the taste is preferred to the worst. The
taste is checked by counting: an answer that ends and has words is better than one that does not, and of two such the
one with fewer words. Both learners get the same pairs, steps and rates. Held out: the share of fresh answers that are
better than the base model's fresh ones, which is a half before, and the learner's own margin on held-out pairs, which
is 0 before. Writes bench/results/learn-preferences.json. It measures quality, so other work may go on beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tinker

from bench.learn_rig import on_threads, questions, run, sampler_of
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, folder
from bench.rows.serve import server
from loreloop.cli.server import RunningServer
from loreloop.learn.clients import Clients
from loreloop.learn.examples import Mark, Preference
from loreloop.learn.learners.dpo import Dpo
from loreloop.learn.learners.kto import Kto
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.learn.settings import DpoSettings, KtoSettings
from loreloop.text.conversation import Conversation, Turn

ANSWER_TOKENS = 64
LEARNERS = ("dpo", "kto")
CLEARLY = 0.6  # a win rate that a model which learned nothing would hardly have


@dataclass(frozen=True)
class Said:
    """A fresh answer; `ended` is False where it was cut off."""

    text: str
    ended: bool

    @property
    def n_words(self) -> int:
        return len(self.text.split())

    @property
    def rank(self) -> int:
        """Of the taste; less is better."""
        return self.n_words if self.ended and self.n_words else ANSWER_TOKENS * 10


@dataclass(frozen=True)
class Asked:
    """A question and the base model's answers to it."""

    prompt: Conversation
    answers: tuple[Said, ...]


@dataclass(frozen=True)
class Found:
    """Of held-out questions: how often a tuned answer beats a base answer, the learner's own margin at the end, and
    what the answers look like."""

    win_rate: float
    margin: float
    words: float
    empty: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--answers", type=int, default=4, help="to each question")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as it finds best")
    options = parser.parse_args()
    found: dict[str, list[Found]] = {name: [] for name in LEARNERS}
    with server(*on_threads(options.threads)) as running:
        prompts = questions(options.questions + options.held_out)
        # Two draws of the same weights: the one is learned from, the other is what fresh answers are compared with.
        first = asyncio.run(answered(running, None, prompts, options.answers, seed=1))
        base = asyncio.run(answered(running, None, prompts[options.questions :], options.answers, seed=2))
        learned, held_out = first[: options.questions], first[options.questions :]
        before = wins(held_out, base)
        print(f"before: {before:.3f}, {words_of(base):.1f} words", flush=True)
        figures = [Figure("the base model against itself", before, "share")]
        figures += [Figure("its answers", words_of(base), "words")]
        for seed in range(1, options.seeds + 1):
            for name in LEARNERS:
                one = trained(running, name, seed, Lesson(learned, held_out, base), options)
                found[name].append(one)
                print(name, seed, one, flush=True)
            # Written after every seed, so that a bench which is ended early leaves what it has found.
            told(figures, found, options)


def told(figures: Sequence[Figure], found: Mapping[str, Sequence[Found]], options: argparse.Namespace) -> None:
    """Writes and prints the figures of all runs until now."""
    whole = [*figures, *(figure for name, values in found.items() for figure in figures_of(name, values))]
    runs = {name: [asdict(one) for one in values] for name, values in found.items()}
    write_record(RESULTS, "learn-preferences", __doc__ or "", whole, all=runs, options=vars(options))
    for figure in whole:
        print(line("learn-preferences", figure), flush=True)


def figures_of(name: str, values: Sequence[Found]) -> list[Figure]:
    """Means over the runs of a learner."""

    def mean(field: str) -> float:
        return statistics.mean(getattr(one, field) for one in values)

    return [
        Figure(f"{name}: held-out win rate", mean("win_rate"), "share", at_least=CLEARLY),
        Figure(f"{name}: the lowest of its runs", min(one.win_rate for one in values), "share"),
        Figure(f"{name}: held-out margin", mean("margin"), "nats"),
        Figure(f"{name}: the lowest margin of its runs", min(one.margin for one in values), "nats", at_least=0.0),
        Figure(f"{name}: its answers", mean("words"), "words"),
        Figure(f"{name}: answers without words", mean("empty"), "share"),
    ]


async def answered(
    running: RunningServer, path: str | None, prompts: Sequence[Conversation], n: int, *, seed: int
) -> list[Asked]:
    """Answers that are drawn at temperature 1 by saved weights, or by the base model."""
    renderer = renderer_of(folder())
    with tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
        sampler = await sampler_of(service, path)
        params = tinker.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=1.0, stop=renderer.stop, seed=seed)
        asked = [sampler.sample(renderer.prompt(prompt), n, params) for prompt in prompts]
        drawn = [(await each).sequences for each in asked]
    return [
        Asked(prompt, tuple(Said(renderer.answer(one.tokens).text, one.stop_reason == "stop") for one in sequences))
        for prompt, sequences in zip(prompts, drawn, strict=True)
    ]


def wins(ours: Sequence[Asked], base: Sequence[Asked]) -> float:
    """How often an answer of ours is better than one of the base model's to the same question; a tie is half a win."""
    scores = [
        (one.rank < other.rank) + 0.5 * (one.rank == other.rank)
        for mine, theirs in zip(ours, base, strict=True)
        for one in mine.answers
        for other in theirs.answers
    ]
    return statistics.mean(scores)


def words_of(asked: Sequence[Asked]) -> float:
    return statistics.mean(answer.n_words for one in asked for answer in one.answers)


@dataclass(frozen=True)
class Lesson:
    """Questions with answers to learn from and to look at, and fresh answers of the base model to the latter."""

    learned: Sequence[Asked]
    held_out: Sequence[Asked]
    base: Sequence[Asked]


def preferences(asked: Sequence[Asked]) -> list[Preference]:
    """Of each question the best answer against the worst, where the taste tells them apart."""
    pairs = []
    for one in asked:
        best, worst = (choose(one.answers, key=lambda answer: answer.rank) for choose in (min, max))
        if best.rank < worst.rank and worst.n_words:
            pairs.append(Preference(one.prompt, _turn(best), _turn(worst)))
    return pairs


def _turn(said: Said) -> Conversation:
    return Conversation((Turn("assistant", said.text),))


def data_of(name: str, pairs: Sequence[Preference]) -> list[Any]:
    """The same pairs as each learner takes them: KTO sees the two answers of a pair on their own."""
    if name == "dpo":
        return [*pairs]
    return [
        mark
        for pair in pairs
        for mark in (Mark(pair.prompt, pair.chosen, True), Mark(pair.prompt, pair.rejected, False))
    ]


def trained(running: RunningServer, name: str, seed: int, lesson: Lesson, options: argparse.Namespace) -> Found:
    """One run of a learner, and what its weights say to held-out questions."""
    data, looked_at = (data_of(name, preferences(asked)) for asked in (lesson.learned, lesson.held_out))
    random.Random(0).shuffle(looked_at)
    plan = Plan(
        base_model=MODEL,
        seed=seed,
        # Marks are two a pair, so that a step of each learner sees eight pairs' worth.
        batch_size=8 if name == "dpo" else 16,
        epochs=options.epochs,
        learning_rate=options.rate,
        save_every=10_000,
    )

    async def make(plan: Plan, clients: Clients, renderer: Renderer) -> Any:
        if name == "dpo":
            return await Dpo.of(plan, clients, renderer, DpoSettings())
        return await Kto.of(plan, clients, renderer, KtoSettings(), data)

    ran = run(running, plan, make, data, looked_at)
    assert ran.position is not None
    margins = [record.metrics["valid_margin"] for record in ran.records if "valid_margin" in record.metrics]
    path = ran.position.checkpoints[-1].path
    fresh = asyncio.run(answered(running, path, [one.prompt for one in lesson.base], options.answers, seed=3))
    empty = statistics.mean(not answer.n_words for one in fresh for answer in one.answers)
    return Found(wins(fresh, lesson.base), margins[-1], words_of(fresh), empty)


if __name__ == "__main__":
    main()
