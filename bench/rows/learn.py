"""A supervised run by the shared runner beside the plain loop over the SDK that does the same steps."""

from __future__ import annotations

import asyncio

import tinker

from bench.rig import MODEL, Figure, Side, alternating, folder
from bench.rows.serve import server
from loreloop.learn.clients import adam_of
from loreloop.learn.examples import Demonstration
from loreloop.learn.methods import Keeping, Order, train
from loreloop.learn.plan import Plan
from loreloop.learn.rendering import renderer_of
from loreloop.learn.runner import Position
from loreloop.learn.settings import SftSettings
from loreloop.text.conversation import Conversation, Turn

N_EXAMPLES = 64
PLAN = Plan(base_model=MODEL, rank=16, train_unembed=False, batch_size=8, epochs=2, learning_rate=1e-4, save_every=1000)


class _Kept:
    """A position in memory."""

    position: Position | None = None

    async def load(self) -> Position | None:
        return self.position

    async def save(self, position: Position) -> None:
        self.position = position


def supervised() -> list[Figure]:
    """16 steps of 8 chats: `learn/runner.py` with its saved states and checkpoints, against a loop that waits for each
    step and saves its weights once in the end; its chats are tokens already."""
    renderer = renderer_of(folder())
    words = [
        "the",
        "fox",
        "and",
        "the",
        "dog",
        "and",
        "the",
        "cow",
        "and",
        "the",
        "owl",
        "went",
        "up",
        "the",
        "long",
        "hill",
        "to",
        "see",
        "the",
        "sea",
    ]
    chats = [
        Demonstration(
            Conversation((Turn("user", f"Tell me of {k}."), Turn("assistant", " ".join(words[k % 9 :] + words)))),
            (0, 1),
        )
        for k in range(N_EXAMPLES)
    ]
    data = {id(chat): renderer.demonstrations(chat) for chat in chats}
    order = Order("sft", PLAN, SftSettings(), renderer, chats)
    with server() as running, tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:

        def ours() -> None:
            asyncio.run(train(order, service, Keeping(_Kept(), tell=lambda record: None)))

        def plain() -> None:
            client = service.create_lora_training_client(
                MODEL, rank=PLAN.rank, seed=PLAN.seed, train_unembed=False
            ).result()
            n_steps = PLAN.n_steps(N_EXAMPLES)
            for step in range(n_steps):
                batch = [datum for chat in PLAN.batch(step, chats) for datum in data[id(chat)]]
                passed = client.forward_backward(batch, "cross_entropy")
                stepped = client.optim_step(adam_of(PLAN, PLAN.rate(step, n_steps)))
                passed.result()
                stepped.result()
            client.save_weights_for_sampler("plain").result()

        plain()  # warms the server up
        turns = alternating({"ours": Side(ours), "plain": Side(plain)})
    seconds = turns.seconds
    return [
        Figure("a supervised run", seconds["ours"], "s"),
        Figure("the plain loop", seconds["plain"], "s"),
        Figure("a supervised run: over the plain loop", seconds["ours"] / seconds["plain"], "x", at_most=1.03),
    ]
