"""All ways to learn by name: what reads their files, and what makes their learners. `train` is a whole run of one.

The command line and the jobs both come in here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tinker

from loreloop.learn import files
from loreloop.learn.clients import Clients, window_of
from loreloop.learn.environments.tools import Offered
from loreloop.learn.learners.dpo import Dpo
from loreloop.learn.learners.kto import Kto
from loreloop.learn.learners.reinforce_loop import RewardLearner
from loreloop.learn.learners.sft import Sft
from loreloop.learn.pictures import BrokenImage, counted, urls_of
from loreloop.learn.plan import Moment, Plan
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewarded_methods import Beginning, asked_of, beginning_of, from_hindsight, from_rewards, shown_of
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.runner import Ending, Learner, Progress, Run, StepRecord, Wish
from loreloop.learn.settings import DpoSettings, KtoSettings, RewardSettings, Settings
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation


@dataclass(frozen=True)
class Order:
    """What is to be learned, how, and from what."""

    method: str
    plan: Plan
    settings: Settings
    renderer: Renderer
    examples: Sequence[Any]
    held_out: Sequence[Any] = ()
    means: Means | None = None  # that graders may use; without a sandbox among them the run has one of its own
    tools: Sequence[Offered] = ()  # of a registered server, where the settings name one


@dataclass(frozen=True)
class Method:
    """`read` makes examples of a file's lines, `data` the data of one example, `make` a learner."""

    read: Callable[[Iterable[bytes | str]], Iterator[Any]]
    data: Callable[[Renderer, Any], list[tinker.Datum]]
    make: Callable[[Order, Clients], Awaitable[Learner[Any]]]


@dataclass(frozen=True)
class Keeping:
    """Who is told what becomes of a run: where it stands, what it measures, and who may end it before its time. A run
    whose budget is spent does as `spent` says: it pauses until it has a larger one, or finishes with what it has.
    `look` sees the run's clients behind each saved state."""

    progress: Progress
    tell: Callable[[StepRecord], None]
    wish: Callable[[], Wish] = lambda: "go"
    spent: Wish = "pause"
    say: Callable[[str], None] = lambda text: None  # what else whoever follows the run should know
    look: Callable[[Clients, Moment], Awaitable[None]] | None = None


class BadExample(BadRequest):
    """An example that the model cannot learn from; it is one of those that are `held_out`, or of the others."""

    def __init__(self, message: str, *, held_out: bool) -> None:
        super().__init__(message)
        self.held_out = held_out


async def train(order: Order, service: tinker.ServiceClient, keeping: Keeping) -> Ending:
    """Runs an order from where its run stands. BadExample for one that the model cannot learn from; NothingGraded where
    a grader never gives a reward."""
    order = replace(order, renderer=await seeing(order, service))
    method, position = METHODS[order.method], await keeping.progress.load()
    if position is None:
        # What was looked at once need not be looked at again by whoever resumes.
        await check(order, service, keeping.wish)
    clients = Clients(service, order.plan, position.states if position else None)
    learner = await method.make(order, clients)
    run = Run(
        plan=order.plan,
        clients=clients,
        learner=learner,
        progress=keeping.progress,
        tell=keeping.tell,
        wish=keeping.wish,
    )
    if keeping.look is not None:
        run.look = partial(keeping.look, clients)
    if not isinstance(learner, RewardLearner):
        return await run.over(order.examples, order.held_out)
    # Whoever keeps the run is asked first: a run that is cancelled is not paused for its budget.
    run.wish = lambda: wish if (wish := keeping.wish()) != "go" else keeping.spent if learner.is_spent else "go"
    try:
        ending, n_steps = await run.over(order.examples, order.held_out), order.plan.n_steps(len(order.examples))
        if learner.is_spent and run.position.step < n_steps:
            keeping.say(f"The budget is spent: the run ended after step {run.position.step} of {n_steps}.")
        return ending
    finally:
        await learner.close()


async def seeing(order: Order, service: tinker.ServiceClient) -> Renderer:
    """The order's renderer with the images of its examples known, whose sizes in tokens only the server knows; itself
    where there are none, or where its model cannot see. BadExample for an image that cannot be read."""
    renderer, sets = order.renderer, ((order.examples, False), (order.held_out, True))
    urls = urls_of(talk for examples, _ in sets for example in examples for talk in conversations_of(example))
    if not urls or renderer.sight is None:
        return renderer
    sampler = await service.create_sampling_client(base_model=order.plan.base_model)
    try:
        return renderer.seeing(await counted(sampler, urls, renderer.stop[0]))
    except BrokenImage as error:
        for examples, held_out in sets:
            for number, example in enumerate(examples, 1):
                if error.url in urls_of(conversations_of(example)):
                    name = _name(number, held_out=held_out)
                    raise BadExample(f"{name}: {error.message}", held_out=held_out) from None
        raise


def _name(number: int, *, held_out: bool) -> str:
    return f"{'Held-out example' if held_out else 'Example'} {number}"


def conversations_of(example: Any) -> list[Conversation]:
    """All that an example of whatever kind holds."""
    return [value for value in vars(example).values() if isinstance(value, Conversation)]


async def check(order: Order, service: tinker.ServiceClient, wish: Callable[[], Wish] = lambda: "go") -> None:
    """BadExample for the first one that the template does not take, that holds nothing to learn, or that is longer than
    the model's window. Breaks off where the run is wished to."""
    window, begins = await window_of(service, order.plan.base_model), beginning_of(order, service)
    look = _Look(order, window, begins)
    try:
        await _checked(look, wish)
    finally:
        if begins is not None:
            await begins.close()


async def _checked(look: _Look, wish: Callable[[], Wish]) -> None:
    for examples, held_out in ((look.order.examples, False), (look.order.held_out, True)):
        for number, example in enumerate(examples, 1):
            # A large file takes a while, in which whoever asked for the run may have thought better of it.
            if wish() != "go":
                return
            try:
                trouble = await look.trouble(example)
            except BadRequest as error:
                trouble = f": {error.message}"
            if trouble is not None:
                raise BadExample(f"{_name(number, held_out=held_out)}{trouble}", held_out=held_out)


@dataclass(frozen=True)
class _Look:
    """What is wrong with an example of an order; `window` is in tokens, None where it is not known."""

    order: Order
    window: int | None
    begins: Beginning | None  # of tasks, which their environment shows more than they hold

    async def trouble(self, example: Any) -> str | None:
        """The end of a sentence that begins with the example's name; None for a good one. BadRequest where the model's
        template does not take it."""
        order = self.order
        if self.begins is not None and isinstance(order.settings, RewardSettings):
            # A prompt needs room for its answer: a request for more than the window is refused, and so is each answer.
            longest, answer = await self.begins.length(example) + order.settings.answer_tokens, " with its answer"
        else:
            data, answer = METHODS[order.method].data(order.renderer, example), ""
            if not data:
                return ": nothing of it is learned, since no answer of the assistant has a weight above 0."
            longest = max(datum.model_input.length + 1 for datum in data)
        if self.window is None or longest <= self.window:
            return None
        return (
            f"{answer} has {longest} tokens, and {order.plan.base_model} takes {self.window}; shorten it, or leave it "
            "out."
        )


async def _sft(order: Order, clients: Clients) -> Learner[Any]:
    return await Sft.of(order.plan, clients, order.renderer)


async def _dpo(order: Order, clients: Clients) -> Learner[Any]:
    assert isinstance(order.settings, DpoSettings)
    return await Dpo.of(order.plan, clients, order.renderer, order.settings)


async def _kto(order: Order, clients: Clients) -> Learner[Any]:
    assert isinstance(order.settings, KtoSettings)
    return await Kto.of(order.plan, clients, order.renderer, order.settings, order.examples)


METHODS: Mapping[str, Method] = {
    "sft": Method(files.demonstrations, lambda renderer, one: renderer.demonstrations(one), _sft),
    "dpo": Method(
        files.preferences,
        lambda renderer, one: renderer.going_on(one.prompt, one.chosen) + renderer.going_on(one.prompt, one.rejected),
        _dpo,
    ),
    "kto": Method(files.marks, lambda renderer, one: renderer.going_on(one.prompt, one.answer), _kto),
    **{name: Method(files.tasks, asked_of, from_rewards) for name in ("grpo", "ppo", "cispo", "reinforce", "distill")},
    "hindsight": Method(files.told, shown_of, from_hindsight),
}
