"""`python -m bench.loop_cycle`: what one cycle of the loop does to the default model.

Prompts are corrected in one of three ways of asking. After a cycle the corrected prompts and their paraphrases are
asked again, and tasks that nobody has corrected are asked before and after. The clock runs from the last statement to
the candidate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import httpx
import openai

from bench.learn_rig import on_threads
from bench.loop_tasks import GENERAL
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure, folder
from loreloop.cli.server import RunningServer, running_server
from loreloop.learn.loop import assembly
from loreloop.learn.loop.config import Loaded, config_of
from loreloop.learn.loop.state import LoopFolder, lines_of
from loreloop.learn.runner import StepRecord

NAME, MOST_TOKENS = "assistant", 40
# Facts of a made-up firm, which no model can know: the corrected answer is all there is to learn from.
FACTS = {
    "the opening hour of the harbour office": "It opens at seven.",
    "the colour of the visitor badge": "The badge is green.",
    "the number of the help desk": "Dial 4417.",
    "the day on which the canteen is closed": "It is closed on Mondays.",
    "the name of the head of the archive": "Her name is Ida Brandt.",
    "the floor of the print room": "It is on the third floor.",
    "the password of the guest network": "It is bluebird.",
    "the length of the lunch break": "It lasts forty minutes.",
    "the place where keys are returned": "Return them at gate B.",
    "the person who signs holiday requests": "Omar Lind signs them.",
    "the month of the summer party": "The party is in June.",
    "the size of a parcel that the post room takes": "Up to ten kilograms.",
}
CORRECTED = "Tell me {fact}."
PARAPHRASES = ("What is {fact}?", "Please say what {fact} is.")


def main() -> None:
    parser = argparse.ArgumentParser()
    # Without them the loop does as it does by default.
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--general", type=int)
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as the machine has cores")
    options = parser.parse_args()
    folder()  # the model must be there before the server looks for it
    with tempfile.TemporaryDirectory() as data:
        Path(data, "models").symlink_to(folder().parent)
        with (
            running_server(data, ["--model", MODEL, *on_threads(options.threads)], durability="power") as server,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            figures = asyncio.run(measured(server, options))
    write_record(RESULTS, "loop-cycle", __doc__ or "", figures, options=vars(options))
    for figure in figures:
        print(line("loop-cycle", figure), flush=True)


async def measured(server: RunningServer, options: argparse.Namespace) -> list[Figure]:
    headers = {"authorization": f"Bearer {server.key}"}
    os.environ["LORELOOP_API_KEY"] = server.key
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key, timeout=600) as client,
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=600) as http,
    ):
        body = {"target": MODEL, "record": True}
        (await http.put(f"/loop/v1/deployments/{NAME}", json=body)).raise_for_status()
        before = await general(client, MODEL)
        await talk(client, http)
        started = time.monotonic()
        path = await one_cycle(server, options)
        seconds = time.monotonic() - started
        steps = steps_of(server)
        corrected = await share_as_corrected(client, path, (CORRECTED,))
        paraphrases = await share_as_corrected(client, path, PARAPHRASES)
        after = await general(client, path)
    return [
        Figure("corrected prompts, answered as corrected", corrected, "share", at_least=0.8),
        Figure("paraphrases of them, answered as corrected", paraphrases, "share", at_least=0.5),
        Figure("general tasks before", before, "share"),
        Figure("general tasks after", after, "share"),
        Figure("general tasks, lost", 100 * (before - after), "points", at_most=2.0),
        Figure("from the last statement to the candidate", seconds, "s", at_most=300.0),
        Figure("steps of the training", len(steps), "steps"),
        Figure("a step", statistics.median(one.seconds for one in steps), "s"),
        Figure("tokens of a step", statistics.mean(one.tokens for one in steps), "tokens"),
    ]


async def talk(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """People correct what the model cannot know, and like some of what it can."""
    prompts = [CORRECTED.format(fact=fact) for fact in FACTS]
    for prompt, wanted in zip(prompts, FACTS.values(), strict=True):
        reply = await asked(client, NAME, prompt)
        await say(http, reply.id, "demonstration", wanted)
    # Liked answers are of other prompts than those by which it is measured what was lost.
    for prompt in OTHERS:
        reply = await asked(client, NAME, prompt)
        await say(http, reply.id, "thumb", True)


OTHERS = [
    f"{ask} {thing}."
    for ask in ("Tell me something about", "Write one sentence about", "Name three kinds of")
    for thing in ("rivers", "bread", "trains", "birds", "music", "winter", "trees", "ships")
]


async def one_cycle(server: RunningServer, options: argparse.Namespace) -> str:
    """The loop's own course, from what was said to a candidate before its gate; gives its path."""
    told = {"epochs": options.epochs, "learning_rate": options.rate, "general": options.general}
    training = {"methods": ["sft"]} | {name: value for name, value in told.items() if value is not None}
    plain = {"deployment": NAME, "url": server.url, "training": training}
    state = server.data / "loop.state"
    async with assembly.opened(Loaded(config_of(plain), server.data, state)) as course:
        course.asked = True
        while (found := LoopFolder(state).load()) is None or found.candidate is None:
            await course.step()
    return found.candidate.target


def steps_of(server: RunningServer) -> list[StepRecord]:
    """What each step of the cycle's training has measured."""
    file = LoopFolder(server.data / "loop.state").cycle(1) / "sft" / "metrics.jsonl"
    return list(lines_of(file, StepRecord))


async def share_as_corrected(client: openai.AsyncOpenAI, path: str, asks: Sequence[str]) -> float:
    prompts = [(ask.format(fact=fact), wanted) for ask in asks for fact, wanted in FACTS.items()]
    found = await asyncio.gather(*(asked(client, path, prompt) for prompt, _ in prompts))
    pairs = zip(found, prompts, strict=True)
    right = [words(text_of(reply)) == words(wanted) for reply, (_, wanted) in pairs]
    return sum(right) / len(right)


async def general(client: openai.AsyncOpenAI, model: str) -> float:
    found = await asyncio.gather(*(asked(client, model, prompt) for prompt in GENERAL))
    right = [
        re.search(wanted, text_of(reply).lower()) is not None
        for reply, wanted in zip(found, GENERAL.values(), strict=True)
    ]
    return sum(right) / len(right)


async def asked(client: openai.AsyncOpenAI, model: str, prompt: str) -> openai.types.chat.ChatCompletion:
    return await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=MOST_TOKENS,
        temperature=0,
        user="ann",
    )


def text_of(reply: openai.types.chat.ChatCompletion) -> str:
    return reply.choices[0].message.content or ""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


async def say(http: httpx.AsyncClient, target: str, metric: str, value: bool | str) -> None:
    body = {"target_id": target, "metric": metric, "value": value, "who": "ann"}
    (await http.post("/loop/v1/feedback", json=body)).raise_for_status()


if __name__ == "__main__":
    main()
