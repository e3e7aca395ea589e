"""How a loop of reinforcement learning grows with its devices: the planner's layouts, played by `simulation.py`.

For each number of devices and each staleness the layout is chosen whose step would be shortest were all answers equally
long: by turns, learning and drawing add up; beside one another, the longer of the two counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from loreloop.parallel.mesh import Mesh, check_mesh
from loreloop.plan.devices import Group
from loreloop.plan.drawing import Curve
from loreloop.plan.memory import fullest, memories_of, unlike_stages
from loreloop.plan.rates import LIKELY
from loreloop.plan.search import meshes_of
from loreloop.plan.simulation import Course, Engines, Outcome, played
from loreloop.plan.times import Machine
from loreloop.plan.wish import Base, Wish
from loreloop.protocol.errors import BadRequest, WrongSettings

FEWEST = 8  # devices that are looked at, where a group has as many
MOST_ANSWERS = 1 << 14  # of one step; a play of more takes longer than a person waits
PLAYED = 4000  # answers that are counted in a play, more or less
# A loop begins with the tasks of several steps at once, and their answers lie ready: twice as many steps are played
# before any counts.
FEWEST_STEPS, MOST_STEPS = 16, 60
WORTH = 0.10  # what a change must bring to be told
MOST_WIDTH = 2  # nodes that share a layer; over more of them, what they say to one another takes longest
LORA_BYTES = 2  # a number of the copy that draws


@dataclass(frozen=True)
class Habits:
    """How the loop is run. `lengths` are those of answers, in the order in which they are asked for."""

    lengths: Sequence[int]
    staleness: tuple[int, ...] = (0, 1, 4)
    overtaking: bool = False
    piece: int | None = None


@dataclass(frozen=True)
class Point:
    """A play on so many devices."""

    n: int
    mesh: Mesh
    n_engines: int
    staleness: int
    outcome: Outcome


@dataclass(frozen=True)
class _Candidate:
    """A mesh that fits a wish. `drawer` is the rank whose tokens take longest; `handed_over` are the bytes of a
    revision that one rank reads."""

    wish: Wish
    mesh: Mesh
    drawer: Machine
    train_seconds: float
    handed_over: float

    def rollout_seconds(self, n: int) -> float:
        """Seconds of a step's answers where an engine of this mesh stands on every so many of `n` devices."""
        n_drawing = max(1, n // self.mesh.n_ranks - 1)
        return self.drawer.rollout(self.wish, -(-self.wish.n_samples // n_drawing)).seconds(LIKELY)

    def step_seconds(self, n: int, rollout_seconds: float, *, beside: bool) -> float:
        """Seconds of a step, where learning goes on beside drawing as far as there are two engines."""
        if beside and n // self.mesh.n_ranks > 1:
            return max(self.train_seconds, rollout_seconds)
        return self.train_seconds + rollout_seconds

    @cached_property
    def token_seconds(self) -> Curve:
        """Of so many answers at once."""
        return between_knots(lambda n: self.drawer.token(self.wish, n).seconds(LIKELY), self.drawer.running)


def check_habits(base: Base, wish: Wish, habits: Habits) -> None:
    """WrongSettings where a step has more answers than a play can have, or an answer more tokens than the model."""
    if wish.n_samples > MOST_ANSWERS:
        raise WrongSettings(
            f"--batch {wish.batch} with --group {wish.group} are {wish.n_samples} answers a step; a simulation "
            f"takes up to {MOST_ANSWERS}."
        )
    room = base.spec.context_window - wish.prompt
    if (longest := max(habits.lengths)) > room:
        raise WrongSettings(
            f"An answer of {longest} tokens is longer than the {room} that {base.name} has room for behind a prompt of "
            f"{wish.prompt}."
        )


def curve(base: Base, wish: Wish, group: Group, habits: Habits, mesh: Mesh | None = None) -> list[Point]:
    """A play for each staleness on 8, 16, 32 devices and so on, up to all of the group; of sizes on which nothing fits
    there is none. With a mesh, of engines of that mesh alone."""
    candidates = list(_candidates(base, wish, group, mesh))
    points = []
    for n in sizes(group.n):
        mine = [one for one in candidates if one.mesh.n_ranks <= n]
        rollouts = [one.rollout_seconds(n) for one in mine]
        for staleness in habits.staleness if mine else ():
            beside = staleness > 0
            steps = [one.step_seconds(n, each, beside=beside) for one, each in zip(mine, rollouts, strict=True)]
            best = mine[steps.index(min(steps))]
            points.append(_point(best, Group(group.device, n), replace(habits, staleness=(staleness,))))
    return points


def sizes(most: int) -> list[int]:
    """Numbers of devices by doubling."""
    found = [min(FEWEST, most)]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found if found[-1] == most else [*found, most]


def _candidates(base: Base, wish: Wish, group: Group, only: Mesh | None) -> Iterable[_Candidate]:
    for mesh in [only] if only else meshes_of(group, has_experts=base.spec.moe is not None):
        try:
            check_mesh(base.spec, mesh)
        except BadRequest:
            continue
        if mesh.tp * mesh.ep > MOST_WIDTH * group.device.per_node and not only:
            continue
        stages = unlike_stages(base.spec, mesh.pp)
        memories = memories_of(base, wish, mesh, group.device.n_bytes, stages)
        memory = fullest(memories)
        if memory.spare < 0:
            continue
        machines = [Machine(base.spec, mesh, group.device, each, memory.running) for each in memories]
        n_rows = min(memory.running, wish.n_samples)
        parts = memory.parts
        yield _Candidate(
            wish,
            mesh,
            max(machines, key=lambda machine: machine.token(wish, n_rows).seconds(LIKELY)),
            max(machine.training(wish).seconds(LIKELY) for machine in machines),
            # In fp32 the gradient has 4 bytes a number that is trained.
            parts.weights + parts.experts if wish.full else parts.gradient / 4 * LORA_BYTES,
        )


def _point(one: _Candidate, group: Group, habits: Habits) -> Point:
    wish = one.wish
    n_engines, (staleness,) = group.n // one.mesh.n_ranks, habits.staleness
    n_steps = min(MOST_STEPS, max(FEWEST_STEPS, PLAYED // wish.n_samples))
    warm_up = 2 * staleness + 2
    course = Course(
        batch=wish.batch,
        group=wish.group,
        prompt=wish.prompt,
        n_steps=warm_up + n_steps,
        warm_up=warm_up,
        staleness=staleness,
        overtaking=habits.overtaking,
        piece=habits.piece,
    )
    return Point(group.n, one.mesh, n_engines, staleness, played(_engines(one, group), course, habits.lengths))


def _engines(one: _Candidate, group: Group) -> Engines:
    wish = one.wish
    n_samplers, device = group.n // one.mesh.n_ranks - 1, group.device
    rate = device.inner_rate if group.n <= device.per_node else device.outer_rate
    a_row = one.train_seconds / wish.trained_rows
    n_read = wish.n_samples * wish.prompt
    return Engines(
        n_samplers=n_samplers,
        room=one.drawer.running,
        token_seconds=one.token_seconds,
        # Of many prompts behind one another, so that the filling of a pipeline does not count for each.
        read_seconds=one.drawer.reading(wish, n_read).seconds(LIKELY) / n_read,
        train_seconds=lambda n_rows: n_rows * a_row,
        # All samplers read from the ranks that learn, whose links are the narrow place.
        handover_seconds=n_samplers * one.handed_over / (rate * LIKELY.links),
    )


def between_knots(seconds: Curve, most: int) -> Curve:
    """A curve from a few of its points, with straight lines between powers of two; beyond the last it stays as it
    is."""
    at = {knot: seconds(knot) for knot in sorted({*(1 << power for power in range(most.bit_length())), most})}

    @cache  # asked at every event of a play
    def found(n: int) -> float:
        n = min(max(n, 1), most)
        low = 1 << (n.bit_length() - 1)
        high = min(2 * low, most)
        return at[low] + ((at[high] - at[low]) * (n - low) / (high - low) if n > low else 0.0)

    return found


def rows_of(points: Sequence[Point], price: float | None = None) -> list[dict[str, Any]]:
    """A row for each play, as it is shown; `price` is that of one device an hour."""
    by_turns = {point.n: point.outcome.tokens_a_second for point in points if point.staleness == 0}
    found = []

    def share(value: float) -> float:
        return abs(round(value, 2))  # rounding leaves a little below nothing

    for point in points:
        outcome = point.outcome
        row: dict[str, Any] = {
            "gpus": point.n,
            "staleness": point.staleness,
            "mesh": str(point.mesh),
            "engines": point.n_engines,
            "tokens_a_second": round(outcome.tokens_a_second),
            "step_s": round(outcome.step_seconds, 1),
            "trainer_idle": share(outcome.trainer_idle),
            "samplers_idle": share(outcome.sampler_idle),
            "staleness_mean": round(outcome.staleness_mean, 2),
            "staleness_most": outcome.staleness_most,
        }
        if point.n in by_turns:
            row["over_by_turns"] = round(outcome.tokens_a_second / by_turns[point.n], 2)
        if price:
            row["cost_a_million_tokens"] = round(1e6 * price * point.n / 3600 / outcome.tokens_a_second, 2)
        found.append(row)
    return found


def verdict(points: Sequence[Point]) -> list[str]:
    """In words, where the loop stops scaling, and where learning beside drawing pays."""
    found = []
    for staleness in sorted({point.staleness for point in points}):
        rates = {point.n: point.outcome.tokens_a_second for point in points if point.staleness == staleness}
        last = _last_worth_it(rates)
        found.append(
            f"At staleness {staleness}, it still scales at {last} devices."
            if last == max(rates)
            else f"At staleness {staleness}, it stops scaling at {last} devices: no further size brings "
            f"{100 * WORTH:.0f} % more tokens a second."
        )
    by_turns = {point.n: point.outcome.tokens_a_second for point in points if point.staleness == 0}
    if by_turns and any(point.staleness for point in points):
        paying = {
            point.n
            for point in points
            if point.staleness and point.outcome.tokens_a_second >= by_turns[point.n] * (1 + WORTH)
        }
        found.append(f"Learning beside drawing {_where(paying, sorted(by_turns))}.")
    return found


def _last_worth_it(rates: Mapping[int, float]) -> int:
    """The fewest devices on which no larger number brings so much more. Layouts change from size to size: one that
    brings little, or less, may be followed by one that is worth it."""
    return min(n for n in rates if all(rates[more] < rates[n] * (1 + WORTH) for more in rates if more > n))


def _where(paying: Collection[int], looked_at: Sequence[int]) -> str:
    """On which sizes it pays, in words."""
    more = f"{100 * WORTH:.0f} % more than by turns"
    if not paying:
        return f"nowhere brings {more}"
    first = min(paying)
    if all(n in paying for n in looked_at if n > first):
        return f"pays from {first} devices on: {more}"
    return f"pays on {', '.join(map(str, sorted(paying)))} devices, and on others not: {more}"
