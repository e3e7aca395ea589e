"""A supervised run by the shared runner, and a job over OpenAI's API, beside the plain loop over the SDK that does the
same steps."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
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
# As jobs have it, in rank and in what is trained.
PLAN = Plan(base_model=MODEL, batch_size=8, epochs=2, learning_rate=1e-4, save_every=20)
TALE = "the fox and the dog and the cow and the owl went up the long hill to see the sea"


class _Kept:
    """A position in memory."""

    position: Position | None = None

    async def load(self) -> Position | None:
        return self.position

    async def save(self, position: Position) -> None:
        self.position = position


def chats() -> list[Demonstration]:
    """Examples of some thirty words each, their beginnings different."""
    words = TALE.split()
    return [
        Demonstration(
            Conversation((Turn("user", f"Tell me of {k}."), Turn("assistant", " ".join(words[k % 9 :] + words)))),
            (0, 1),
        )
        for k in range(N_EXAMPLES)
    ]


def supervised() -> list[Figure]:
    """16 steps of 8 chats: `learn/runner.py` with its saved states and checkpoints, and a job from its request to its
    end, against a loop that waits for each step and saves its weights once in the end; its chats are tokens already."""
    renderer, examples = renderer_of(folder()), chats()
    data = {id(chat): renderer.demonstrations(chat) for chat in examples}
    order = Order("sft", PLAN, SftSettings(), renderer, examples)
    with server() as running, tinker.ServiceClient(base_url=running.url, api_key=running.key) as service:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0)
        lines = "\n".join(json.dumps(_line(chat)) for chat in examples)
        file = client.files.create(file=("chats.jsonl", lines.encode()), purpose="fine-tune")

        def ours() -> None:
            asyncio.run(train(order, service, Keeping(_Kept(), tell=lambda record: None)))

        def plain() -> None:
            client = service.create_lora_training_client(
                MODEL, rank=PLAN.rank, seed=PLAN.seed, train_unembed=PLAN.train_unembed
            ).result()
            n_steps = PLAN.n_steps(N_EXAMPLES)
            for step in range(n_steps):
                batch = [datum for chat in PLAN.batch(step, examples) for datum in data[id(chat)]]
                passed = client.forward_backward(batch, "cross_entropy")
                stepped = client.optim_step(adam_of(PLAN, PLAN.rate(step, n_steps)))
                passed.result()
                stepped.result()
            client.save_weights_for_sampler("plain").result()

        plain()  # warms the server up
        turns = alternating({"ours": Side(ours), "plain": Side(plain), "job": Side(lambda: _job(client, file.id))})
    seconds = turns.seconds
    return [
        Figure("a supervised run", seconds["ours"], "s"),
        Figure("a supervised job", seconds["job"], "s"),
        Figure("the plain loop", seconds["plain"], "s"),
        Figure("a supervised run: over the plain loop", seconds["ours"] / seconds["plain"], "x", at_most=1.03),
        Figure("a supervised job: over the plain loop", seconds["job"] / seconds["plain"], "x", at_most=1.03),
    ]


def _line(chat: Demonstration) -> dict[str, object]:
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in chat.conversation.turns]}


def _job(client: openai.OpenAI, file_id: str) -> None:
    """A job of the same steps, until it says that it has succeeded."""
    method = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": PLAN.epochs, "batch_size": PLAN.batch_size}},
    }
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file_id,
        method=method,  # type: ignore[arg-type]
        seed=PLAN.seed,
    )
    # Its events are listened to, since each question whether it has ended yet takes 5 ms of the two cores.
    events = f"{client.base_url}fine_tuning/jobs/{job.id}/events"
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx.stream("GET", events, params={"stream": "true"}, headers=headers, timeout=None) as stream:
        for _ in stream.iter_lines():
            pass
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
