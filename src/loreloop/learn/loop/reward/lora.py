"""A reward that is a LoRA adapter of a served base model, learned by the Tinker protocol alone.

The model is shown the conversation and the answer and asked, always in the same words, whether the answer is a good
one. The reward is the log-odds of its answer's first token, r = log p(yes) − log p(no), which reads both from one
position by the K targets of `cross_entropy`. A preference's loss is −log σ(r⁺ − r⁻) + λ · (r⁺ + r⁻)², a mark's is
logistic with a bias; their slopes by r become weights of a second pass, whose gradient is that of the loss itself (see
`learn/learners/surrogate.py`). New events are scored before they are learned from, and bring old ones along, the newer
the likelier. A version goes on from the one before, with the optimizer's state.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import tinker

from loreloop.learn.learners.surrogate import Floats, sigmoid
from loreloop.learn.loop.reward.calibration import Link, Outcome, accuracy, fitted_link, log_loss
from loreloop.learn.loop.reward.events import (
    NOBODY,
    DataRange,
    LabelledEvent,
    RewardVersion,
    Scored,
    range_with,
    text_of,
)
from loreloop.learn.loop.reward.keeping import drop_files, newest, save_version
from loreloop.learn.loop.reward.watchers import Ledger
from loreloop.learn.refusals import Refused, refusal
from loreloop.learn.rendering import Renderer
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Turn

KIND = "lora"
YES, NO = "Yes", "No"
QUESTION = f"Is this a good answer to the last message? Reply with {YES} or {NO} alone."
ENOUGH = 100  # outcomes before accuracy and loss are told


@dataclass(frozen=True)
class LoraSettings:
    """`batch`: new events of a step, each of which brings `replay` old ones. The most characters of a prompt (its end
    is kept) and of an answer bound what an event costs."""

    rank: int = 16
    learning_rate: float = 3e-4
    batch: int = 8
    replay: float = 0.5
    half_life_events: float = 500.0
    centring: float = 0.01
    person_cap: float = 25.0
    cap_half_life_days: float = 7.0
    n_reference: int = 32
    window: int = 400
    buffer: int = 400
    prompt_characters: int = 1500
    answer_characters: int = 1500
    seed: int = 0
    name: str = "reward"


class _State(msgspec.Struct, kw_only=True):
    learned: list[LabelledEvent]
    outcomes: list[list[float]]
    ledger: dict[str, list[float]]
    persons: list[str]
    reference: list[LabelledEvent]
    frozen: bool
    bias: float


class LoraReward:
    """A `RewardModel`. Its calls block, and belong into a thread where a loop runs."""

    def __init__(
        self,
        service: tinker.ServiceClient,
        base_model: str,
        renderer: Renderer,
        settings: LoraSettings | None = None,
        reference: Sequence[Scored] = (),
    ) -> None:
        self.service, self.base_model, self.renderer = service, base_model, renderer
        self.settings = settings or LoraSettings()
        self.version = RewardVersion(number=0, kind=KIND, data=DataRange())
        self.reference, self.frozen = [_anchor(item) for item in reference], bool(reference)
        self.yes, self.no = (renderer.tokenizer.encode(word)[0] for word in (YES, NO))
        if self.yes == self.no:
            raise BadRequest(f"{base_model} begins {YES!r} and {NO!r} with the same token, so it cannot be a reward.")
        self.n_models = 0  # made at the server; what is not asked any more goes with the session
        self._client: tinker.TrainingClient | None = None
        self._begin()

    @property
    def client(self) -> tinker.TrainingClient:
        """The adapter at the server; a fresh one where none was loaded or made yet."""
        if self._client is None:
            self._client = self._fresh()
        return self._client

    def _fresh(self) -> tinker.TrainingClient:
        settings = self.settings
        made = self.service.create_lora_training_client(
            self.base_model, rank=settings.rank, seed=settings.seed, train_unembed=False
        )
        self.n_models += 1
        return made.result()

    def _begin(self) -> None:
        settings = self.settings
        self.ledger = Ledger(settings.person_cap, settings.cap_half_life_days)
        self.outcomes: deque[Outcome] = deque(maxlen=settings.window)
        self.learned: deque[LabelledEvent] = deque(maxlen=settings.buffer)
        self.link, self.persons, self.bias, self.n_steps = Link(), set[str](), 0.0, 0
        self.is_lost = False  # the weights that have learned what is in `learned`

    def update(self, events: Sequence[LabelledEvent]) -> RewardVersion:
        """Learns from new events, and saves the weights at the server; without events the version stays."""
        self._find_again()
        if not events:
            return self.version
        counted = []
        for event in sorted(events, key=lambda one: one.number):
            if not self.frozen:
                self.reference.append(event)
                self.frozen = len(self.anchors()) >= self.settings.n_reference
            weight = self.ledger.counted(event)
            if weight > 0:
                counted.append(msgspec.structs.replace(event, weight=weight))
            self.persons |= {event.person} - {NOBODY}
        self._learn(counted)
        self.version = self._next(events, "")
        return self.version

    def score(self, items: Sequence[Scored]) -> list[float]:
        """A number for each answer, in spreads of the reference set from its mean; one forward pass for all."""
        self._find_again()
        return [float(raw - self.version.mean) / self.version.spread for raw in self._raw(items)]

    def forget(self, persons: Collection[str] = (), ids: Collection[str] = ()) -> RewardVersion:
        """Learns anew from a fresh adapter, without some persons or statements; see `LinearReward.forget`."""
        kept = [one for one in self.learned if not one.is_of(persons) and one.id not in ids]
        anchors = [one for one in self.reference if not one.is_of(persons) and one.id not in ids]
        n_before = len(self.learned) + len(self.reference)
        if len(kept) + len(anchors) == n_before and not self.persons & {*persons} and not ids:
            return self.version
        self.frozen = self.frozen and len(anchors) == len(self.reference)
        self.reference = anchors
        known = self.persons - {*persons}
        spent = {person: spent for person, spent in self.ledger.spent.items() if person not in persons}
        self._begin()
        self.persons, self.ledger.spent = known, spent
        self._client = self._fresh()
        self._learn(kept)
        self.version = self._next((), f"learned anew without {len(persons)} persons and {len(ids)} statements")
        return self.version

    def known(self) -> set[str]:
        """The ids of the statements that are still kept, of those learned from."""
        return {one.id for one in self.learned}

    def save(self, folder: Path) -> None:
        """Keeps the version; its weights are at the server, under the path that the record names."""
        if self.version.number:
            state = _State(
                learned=list(self.learned),
                outcomes=[[one.score, one.said] for one in self.outcomes],
                ledger=self.ledger.state(),
                persons=sorted(self.persons),
                reference=self.reference,
                frozen=self.frozen,
                bias=self.bias,
            )
            save_version(folder, self.version, {"state.json": msgspec.json.encode(state)}, self._drop_weights)

    def drop_older(self, folder: Path) -> None:
        """Leaves only the newest version's files, and its weights at the server: older ones hold what was forgotten."""
        drop_files(folder, kept=1, first=self._drop_weights)

    def _drop_weights(self, version: RewardVersion) -> None:
        if version.weights is not None and version.weights != self.version.weights:
            # Somebody else may have deleted them, or this one before a death.
            with contextlib.suppress(tinker.NotFoundError):
                self.service.create_rest_client().delete_checkpoint_from_tinker_path(version.weights).result()

    def anchors(self) -> list[Scored]:
        """The answers of the reference set."""
        return [item for event in self.reference for item in items_of(event)]

    def load(self, folder: Path) -> None:
        """Goes on from the newest version that is whole, with its weights from the server; where they are gone there,
        it learns anew before it is asked or taught, and after it has forgotten whom it must."""
        kept = newest(folder, KIND)
        if kept is None or kept.version.weights is None:
            return
        state = msgspec.json.decode(kept.files["state.json"], type=_State)
        self._begin()
        self.version, self.reference, self.frozen = kept.version, state.reference, state.frozen
        try:
            client = self.service.create_training_client_from_state_with_optimizer(kept.version.weights).result()
        except tinker.TinkerError as error:
            if not isinstance(refusal(error, "the reward's weights"), Refused):
                raise
            self.is_lost = True
        self.learned.extend(state.learned)
        self.ledger.restore(state.ledger)
        self.persons = set(state.persons)
        if self.is_lost:
            return
        self._client, self.n_models = client, self.n_models + 1
        self.outcomes.extend(Outcome(*one) for one in state.outcomes)
        self.bias = state.bias
        self.link = fitted_link(list(self.outcomes))

    def _find_again(self) -> None:
        """Learns once more what is still kept of what it has learned, where nobody has its weights any more."""
        if not self.is_lost:
            return
        kept, self.is_lost = list(self.learned), False
        self.learned.clear()
        self._learn(kept)
        self.version = self._next((), "learned anew: its weights are gone at the server")

    def _learn(self, events: Sequence[LabelledEvent]) -> None:
        for start in range(0, len(events), self.settings.batch):
            new = events[start : start + self.settings.batch]
            self._step(new, self._replayed(len(new)))
            self.learned.extend(new)
        self.link = fitted_link(list(self.outcomes))

    def _step(self, new: Sequence[LabelledEvent], old: Sequence[LabelledEvent]) -> None:
        events = [*new, *old]
        data = [self._datum(item) for event in events for item in items_of(event)]
        raw = self._read(self.client.forward(data, "cross_entropy").result())
        slopes, at = np.zeros(len(data)), 0
        for place, event in enumerate(events):
            rewards = raw[at : at + len(items_of(event))]
            if place < len(new):
                self.outcomes.append(outcome_of(event, rewards, self.bias))
            slopes[at : at + len(rewards)] = slopes_of(event, rewards, self.bias, self.settings.centring)
            if event.worse is None:
                self.bias -= 0.1 * event.weight * float(sigmoid(rewards + self.bias)[0] - event.value)
            at += len(rewards)
        weighted = [self._datum_again(datum, slope / len(events)) for datum, slope in zip(data, slopes, strict=True)]
        passed = self.client.forward_backward(weighted, "cross_entropy")
        stepped = self.client.optim_step(tinker.AdamParams(learning_rate=self.settings.learning_rate))
        passed.result(), stepped.result()
        self.n_steps += 1

    def _replayed(self, n: int) -> list[LabelledEvent]:
        n = round(n * self.settings.replay)
        if not self.learned or not n:
            return []
        rng = np.random.default_rng([self.settings.seed, self.version.number, self.n_steps])
        ages = rng.exponential(self.settings.half_life_events / np.log(2), n)
        return [self.learned[-1 - int(age) % len(self.learned)] for age in ages]

    def _raw(self, items: Sequence[Scored]) -> Floats:
        if not items:
            return np.zeros(0)
        return self._read(self.client.forward([self._datum(item) for item in items], "cross_entropy").result())

    def _read(self, output: tinker.ForwardBackwardOutput) -> Floats:
        """r of every datum, from the log-probabilities of the two words at its last position."""
        rows = [np.asarray(one["logprobs"].to_numpy(), np.float64).reshape(-1, 2)[-1] for one in output.loss_fn_outputs]
        return np.array([yes - no for yes, no in rows])

    def _datum(self, item: Scored) -> tinker.Datum:
        """The question about an answer, with both words as targets of its last position, at no weight yet."""
        tokens = self.renderer.prompt_tokens(Conversation((Turn("user", self._asked(item)),)))
        targets = np.tile(np.array([self.yes, self.no], np.int64), (len(tokens), 1))
        return tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(targets),
                "weights": tinker.TensorData.from_numpy(np.zeros(targets.shape, np.float32)),
            },
        )

    @staticmethod
    def _datum_again(datum: tinker.Datum, slope: float) -> tinker.Datum:
        # The loss is −Σ w · lp, and r = lp(yes) − lp(no): so a slope by r is the weights −slope and +slope.
        weights = np.zeros((datum.model_input.length, 2), np.float32)
        weights[-1] = (-slope, slope)
        inputs = {**datum.loss_fn_inputs, "weights": tinker.TensorData.from_numpy(weights)}
        return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)

    def _asked(self, item: Scored) -> str:
        """One message, so that every chat template takes it, whatever roles the conversation has."""
        told = "\n\n".join(f"{message.get('role', '')}: {text_of(message)}" for message in item.messages)
        prompt, answer = told[-self.settings.prompt_characters :], item.answer[: self.settings.answer_characters]
        return f"A conversation:\n\n{prompt}\n\nThe answer:\n\n{answer}\n\n{QUESTION}"

    def _next(self, events: Sequence[LabelledEvent], note: str) -> RewardVersion:
        raw, number = self._raw(self.anchors()), self.version.number + 1
        spread = float(raw.std()) if len(raw) and raw.std() > 1e-6 else 1.0
        saved = self.client.save_state(f"{self.settings.name}-{number:06d}", overwrite=True).result()
        enough, outcomes = len(self.outcomes) >= ENOUGH, list(self.outcomes)
        return RewardVersion(
            number=number,
            kind=KIND,
            data=range_with(self.version.data, events, len(self.persons)),
            mean=float(raw.mean()) if len(raw) else 0.0,
            spread=spread,
            slope=self.link.slope * spread,
            noise=self.link.noise,
            n_reference=len(raw),
            accuracy=accuracy(outcomes) if enough else None,
            loss=log_loss(self.link, outcomes) if enough else None,
            weights=saved.path,
            note=note,
        )


def _anchor(item: Scored) -> LabelledEvent:
    """An answer of a reference set that is nobody's."""
    return LabelledEvent(id="", number=0, person=NOBODY, created=0.0, metric="", item=item)


def items_of(event: LabelledEvent) -> list[Scored]:
    """The answer of a mark, or the better and the worse one of a pair."""
    return [event.item] if event.worse is None else [event.item, event.worse]


def outcome_of(event: LabelledEvent, rewards: Floats, bias: float) -> Outcome:
    """What was predicted of an event, and what was said."""
    if event.worse is None:
        return Outcome(float(rewards[0] + bias), event.value)
    return Outcome(float(rewards[0] - rewards[1]), 1.0)


def slopes_of(event: LabelledEvent, rewards: Floats, bias: float, centring: float) -> Floats:
    """The slopes of an event's loss by its rewards: w·(σ(r + b) − y) for a mark; for a pair ∓w·σ(−(r⁺ − r⁻)), and
    2λ·w·(r⁺ + r⁻) for both."""
    if event.worse is None:
        return event.weight * (sigmoid(rewards + bias) - event.value)
    pull = event.weight * sigmoid(rewards[1:] - rewards[:1])[0]
    centre = 2 * centring * event.weight * rewards.sum()
    return np.array([centre - pull, centre + pull])
