"""A loop put together from its loop.toml: door, SDK, renderer, training and gate around the course.

Knows how the parts fit, and none of their rules.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import msgspec
import tinker

from loreloop.learn.clients import window_of
from loreloop.learn.examples import Task
from loreloop.learn.files import tasks
from loreloop.learn.loop.answering import RehearsingRoom, RememberingRoom, Room
from loreloop.learn.loop.checking import check_deployment
from loreloop.learn.loop.collecting import Line, fresh_of, measured_of
from loreloop.learn.loop.config import Gate, Loaded
from loreloop.learn.loop.cycle import Course, Work
from loreloop.learn.loop.cycle_files import data_of, trained_prompts, with_prompts
from loreloop.learn.loop.door import Door
from loreloop.learn.loop.gate import Gated, OfflineGate, Sides
from loreloop.learn.loop.general import built_in, lay_out_general
from loreloop.learn.loop.golden_prompts import labelled_prompts
from loreloop.learn.loop.guarding import FEWEST, Guards
from loreloop.learn.loop.persons import PersonCourse
from loreloop.learn.loop.rewarding import Base, Rewarding
from loreloop.learn.loop.sessions import LoopSession, session_of_its_own
from loreloop.learn.loop.state import LoopFolder, State
from loreloop.learn.loop.sweeping import swept
from loreloop.learn.loop.task_files import GoldenFile, tasks_of, without
from loreloop.learn.loop.training import Made, Shop, for_person, trained
from loreloop.learn.loop.watching import Look
from loreloop.learn.model_texts import fetch_texts
from loreloop.learn.refusals import in_our_words
from loreloop.learn.rendering import Renderer, renderer_of
from loreloop.protocol.episodes import Message, Turn
from loreloop.protocol.errors import WrongSettings
from loreloop.protocol.feedback import Feedback, Metric

MOST_WATCHED = 16  # recorded prompts that are answered at each look at a training
PERSON_TOKENS = 256  # of an answer that is compared with a correction


def key_of(loaded: Loaded) -> str:
    """The loop's key, out of the environment. WrongSettings where it is not there."""
    name = loaded.config.key_variable
    if not (key := os.environ.get(name)):
        raise WrongSettings(
            f"`key_variable` names {name}, which is not set: export {name}=tml-… with a key that may train."
        )
    return key


def door_of(loaded: Loaded) -> Door:
    """The door to the loop's deployment."""
    return Door.to(loaded.config.url, key_of(loaded), loaded.config.deployment)


@asynccontextmanager
async def opened(loaded: Loaded, now: Callable[[], float] = time.time) -> AsyncIterator[Course]:
    """The loop's course against its server, begun or gone on with. WrongSettings, or the server's own refusal, where
    the loop cannot run."""
    door, folder = door_of(loaded), LoopFolder(loaded.folder)
    key = key_of(loaded)
    begin = partial(tinker.ServiceClient, base_url=loaded.config.url, api_key=key)
    with begin() as service:
        state = folder.load()
        base_model = state.base_model if state else await base_of(service, door.deployment().target)
        declared = door.metrics()
        metrics = declared.built_in | declared.metrics
        check_deployment(loaded.config, door.deployment(), metrics)
        with_prompts(loaded.folder, door.turns)
        texts = texts_of(loaded, base_model)
        renderer, golden = renderer_of(texts), golden_of(loaded)
        # In a thread, since a LoRA reward waits for its weights.
        with in_our_words("the reward's weights"):
            rewarding = await asyncio.to_thread(
                Rewarding,
                loaded,
                Base(service, base_model, renderer, begin),
                key,
                deleted=door.deleted_persons,
                golden=golden.holds,
                declared=declared.metrics,
            )
        parts = Parts(
            loaded=loaded,
            service=service,
            begin=begin,
            renderer=renderer,
            texts=texts,
            base_model=base_model,
            rewarding=rewarding,
            golden=golden,
            metrics=metrics,
            session=replace(LoopSession(service, door, rewarding.lose), beside=lambda: rewarding.own),
            rehearsing=RehearsingRoom(service, renderer),
            labelled=lambda trained: labelled_prompts(door.turns(), door.feedback(), door.deleted_persons(), trained),
        )
        persons = PersonCourse(
            rules=loaded.config.persons,
            folder=folder,
            server=door,
            train=parts.train_person,
            right=parts.right,
            now=now,
            deployment=loaded.config.deployment,
        )
        course = Course(config=loaded.config, folder=folder, server=door, work=parts.work(), now=now, persons=persons)
        course.begin(base_model)
        try:
            yield course
        finally:
            await rewarding.close()


async def base_of(service: tinker.ServiceClient, target: str) -> str:
    """The base model below a deployment's target."""
    if not target.startswith("tinker://"):
        await window_of(service, target)  # refuses what is not served
        return target
    rest = tinker.RestClient(service.holder)
    try:
        return (await rest.get_weights_info_by_tinker_path(target)).base_model
    except tinker.TinkerError as error:
        raise WrongSettings(f"The deployment's target {target} cannot be looked at: {error}") from None


def texts_of(loaded: Loaded, base_model: str) -> Path:
    """The base model's tokenizer and template, fetched once into the loop's folder."""
    folder, new = loaded.folder / "texts", loaded.folder / "texts.new"
    if not folder.exists():
        loaded.folder.mkdir(parents=True, exist_ok=True)
        with httpx.Client(base_url=loaded.config.url, timeout=60, trust_env=False) as http:
            fetch_texts(http, base_model, new).rename(folder)
    return folder


@dataclass(frozen=True)
class Parts:
    """What a course's work is made of."""

    loaded: Loaded
    service: tinker.ServiceClient
    begin: Callable[[], tinker.ServiceClient]  # another session, as the same key
    renderer: Renderer
    texts: Path
    base_model: str
    rewarding: Rewarding
    golden: GoldenFile
    metrics: Mapping[str, Metric]
    # Golden prompts that reviewers have made, as of now, but for those of these keys.
    labelled: Callable[[frozenset[str]], list[Task]]
    session: LoopSession
    rehearsing: RehearsingRoom

    def work(self) -> Work:
        """The work of a cycle, by the settings."""
        return Work(
            train=self.train,
            look=self.look,
            learn_reward=self.hear if self.rewarding.stream else None,
            sweep=self.sweep,
            golden=self.golden.keys,
            held_out=self.rewarding.holds,
            metrics=self.metrics,
        )

    async def hear(self, turns: Sequence[Turn], statements: Sequence[Feedback]) -> str:
        """Lets the reward learn what is new; an alarm in a sentence, or ""."""
        with self.session.watched():
            await self.rewarding.whole()
            return await self.rewarding.hear(turns, statements)

    async def sweep(self, keep: Collection[str]) -> None:
        """Deletes what guards have left of trainings at the server, but for some paths."""
        if self.rewarding.stream is not None:
            with self.session.watched(), in_our_words("old copies of weights"):
                await swept(self.service, self.loaded.config.deployment, keep)

    def shop(self) -> Shop:
        """What training needs."""
        return Shop(
            service=self.service,
            renderer=self.renderer,
            texts=self.texts,
            base_model=self.base_model,
            training=self.loaded.config.training,
            seed=self.loaded.config.seed,
            reward=self.rewarding.reward,
        )

    async def train(self, folder: Path, start: str | None, name: str) -> Made | None:
        """A candidate of a cycle's folder, watched by the guards where a reward learns."""
        with self.session.watched():
            await self.rewarding.whole()
        if (folder / "sft.jsonl").exists() and (target := self.held_to()) is not None:
            await self.lay_out_general(folder, target)
        return await self._train(replace(self.shop(), look=self.guard(folder)), folder, start, name)

    def held_to(self) -> str | None:
        """The weights to which general prompts hold a cycle's candidate, those that its training begins with. None
        where these cannot be asked."""
        state = LoopFolder(self.loaded.folder).load()
        if state is None or not state.from_start:
            return state.champion.target if state else None
        # The champion's answers would teach what it has learned from persons who were deleted since.
        if self.loaded.config.start is None:
            return state.base_model
        # Weights to train on, of which nobody knows as what they are sampled.
        if self.loaded.config.training.general:
            self.tell(state, "No general prompts stand beside its lines, since it begins at `start`.")
        return None

    async def lay_out_general(self, folder: Path, target: str) -> None:
        """Puts general prompts beside the corrections of a folder, answered by what their training begins with."""
        told = self.loaded.config.training
        if not told.general:
            return
        file = told.general_file
        prompts = tasks_of(self.loaded.path(file), "file of general prompts") if file else built_in()
        with self.session.watched():
            kept_out = self.golden.keys() | measured_of(self.session.door.turns(), self.session.door.feedback())
            asked = [one for one in without(prompts, kept_out) if not self.rewarding.holds(one.item["messages"])]
            await lay_out_general(folder, self.rehearsing, target, asked[: told.general])

    def guard(self, folder: Path) -> Look | None:
        """What looks at the weights while they learn from a cycle's folder; None where nothing does."""
        stream, state = self.rewarding.stream, LoopFolder(self.loaded.folder).load()
        # What begins where the loop began has first to become as good as the champion, and knows less while it does: a
        # fall against the champion is no sign of a fooled reward. The gate looks at what it is in the end.
        if stream is None or state is None:
            return None
        if state.from_start:
            self.tell(state, "No guards look at it before the gate, since it begins where the loop began.")
            return None
        turns, n = list(self.session.door.turns()), min(MOST_WATCHED, self.gate.prompts)
        fresh = fresh_of(turns, {*data_of(folder).turns}, n)
        # Too few would stop nobody; what was trained on tells of a reward that is fooled as well.
        turns = fresh if len(fresh) >= FEWEST else fresh_of(turns, (), n)
        guards = Guards(RememberingRoom(self.service, self.renderer), self.loaded, stream, self.untrained)
        if silent := guards.silent(len(turns)):
            # The gate's decision says it too, for its own look.
            self.tell(state, silent)
        return guards.watch(state.champion.target, asked_again(turns))

    def tell(self, state: State, sentence: str) -> None:
        """Says what is off in the training of a cycle."""
        folder, begun = LoopFolder(self.loaded.folder), f"Cycle {state.cycle} trains a candidate."
        # Beside what was said of this training already: more than one may be off.
        said = str(folder.why()["sentence"])
        said = said if said.startswith(begun) else begun
        folder.tell(said if sentence in said else f"{said} {sentence}")

    @property
    def gate(self) -> Gate:
        """The settings of the gate, which guards go by as well."""
        return self.loaded.config.gate

    async def train_person(self, folder: Path, start: str | None, name: str) -> Made | None:
        """Weights for one person, of their corrections, held to the champion's answers on general prompts as a cycle's
        candidate is."""
        rules, state = self.loaded.config.persons, LoopFolder(self.loaded.folder).load()
        if state is not None:
            await self.lay_out_general(folder, state.champion.target)
        return await self._train(for_person(self.shop(), rules.epochs, rules.learning_rate), folder, start, name)

    async def _train(self, shop: Shop, folder: Path, start: str | None, name: str) -> Made | None:
        """Trains in a session of its own, so that its models go when it is over. The reward's model and the guards'
        samplers are the loop's, whose session is watched as well."""
        with self.session.watched(), in_our_words("the training"):
            async with session_of_its_own(self.begin) as service:
                own = LoopSession(service, self.session.door, self.session.lost)
                with own.watched(), in_our_words("the training"):
                    return await trained(replace(shop, service=service), folder, start, name)

    async def right(self, target: str, lines: Sequence[Line]) -> float:
        """The share of corrected prompts that weights answer as they were corrected, but for white space and case."""
        wanted = [str(line["messages"][-1]["content"]) for line in lines]
        plain = [{"messages": [_asked(one) for one in line["messages"][:-1]]} for line in lines]
        asked = list(tasks(map(msgspec.json.encode, plain)))
        with self.session.watched():
            found = await Room(self.service, self.renderer).answers(target, asked, PERSON_TOKENS)
        return sum(_words(one.text) == _words(each) for one, each in zip(found, wanted, strict=True)) / len(lines)

    def untrained(self) -> list[Task]:
        """The prompts of the golden file that nobody was trained on before they came into it."""
        return without(self.golden.tasks(), trained_prompts(self.loaded.folder))

    async def look(self, sides: Sides, turns: Sequence[Turn], prompts: Sequence[Turn]) -> Gated:
        """The offline gate, with prompts of recorded turns for the shadow, and the guards where a reward learns."""
        room, asked = RememberingRoom(self.service, self.renderer), asked_again(prompts)
        with self.session.watched(), in_our_words("the gate"):
            await self.rewarding.whole()
            golden = [*self.untrained(), *self.labelled(trained_prompts(self.loaded.folder))]
            found = await OfflineGate(room, self.loaded).look(sides, turns, asked, golden)
            if self.rewarding.stream is not None:
                await Guards(room, self.loaded, self.rewarding.stream, self.untrained).look(sides, asked, found)
        return found


def _asked(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}


def _words(text: str) -> list[str]:
    return text.casefold().split()


def asked_again(turns: Sequence[Turn]) -> list[Task]:
    """The prompts of recorded turns, as tasks."""
    lines = [{"messages": list(turn.messages)} | ({"tools": list(turn.tools)} if turn.tools else {}) for turn in turns]
    return list(tasks(map(msgspec.json.encode, lines)))


def golden_of(loaded: Loaded) -> GoldenFile:
    """The golden prompts, as they are known among recorded turns."""
    name = loaded.config.reward.golden
    return GoldenFile(loaded.path(name) if name else None)
