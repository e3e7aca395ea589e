"""A plan in rows and words: what is printed, and what programs read. Knows no terminals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loreloop.model.spec import DecoderSpec
from loreloop.parallel.pipeline_cut import head_cost, layer_cost
from loreloop.plan.devices import Group
from loreloop.plan.memory import BAND
from loreloop.plan.rates import FAST, LIKELY, SLOW
from loreloop.plan.search import Layout, Plan, smallest_group, would_fit
from loreloop.plan.wish import Base, Wish

SHOWN = 4  # layouts that fit
REASONS = 6  # layouts that lose
GIGA = 1e9


@dataclass(frozen=True)
class Report:
    """`best` are layouts that fit, `losing` why the rest lose; `beside` is full tuning, or LoRA where that is asked
    for; `would` what would fit where nothing does."""

    best: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    losing: list[str]
    beside: str
    would: list[str]


def report_of(base: Base, wish: Wish, group: Group, plan: Plan, prices: Mapping[str, float]) -> Report:
    """All of it; `prices` are of one device an hour, by its name."""
    best = plan.fitting[:SHOWN]
    return Report(
        best=[_row(base, wish, group, layout, prices) for layout in best],
        memory=[_memory(layout) for layout in (best or plan.too_large[:1])],
        losing=list(_losing(plan)),
        beside=_beside(base, wish, group),
        would=[] if plan.fitting else would_fit(base, wish, group),
    )


def _row(base: Base, wish: Wish, group: Group, layout: Layout, prices: Mapping[str, float]) -> dict[str, Any]:
    step = layout.step
    assert step
    n_tokens, seconds = wish.n_samples * wish.response, step.seconds(LIKELY)
    row: dict[str, Any] = {
        "mesh": str(layout.mesh),
        "engines": layout.n_engines,
        "gb_a_rank": round(layout.memory.total / GIGA, 1),
        "answers_at_once": layout.memory.running,
        "rollout_s": round(step.rollout.seconds(LIKELY), 1),
        "rollout_bound": step.rollout.bound(LIKELY),
        "training_s": round(step.training.seconds(LIKELY), 1),
        "training_bound": step.training.bound(LIKELY),
        "step_s": round(seconds, 1),
        "step_s_from": round(step.seconds(FAST), 1),
        "step_s_to": round(step.seconds(SLOW), 1),
        "tokens_a_second": round(n_tokens / seconds),
        "utilisation": round(useful_flops(base.spec, wish) / (seconds * group.n * group.device.flops), 4),
    }
    if price := prices.get(group.device.name):
        row["cost_a_step"] = round(price * group.n * seconds / 3600, 4)
    return row


def useful_flops(spec: DecoderSpec, wish: Wish) -> float:
    """Operations that a step needs however it is laid out: each drawn token once, each trained row there and back by
    its inputs, nothing twice."""
    a_row = 2.0 * (sum(layer_cost(spec, layer) for layer in range(spec.n_layers)) + head_cost(spec))
    drawn = wish.batch * wish.prompt + wish.n_samples * wish.response
    return a_row * (drawn + (3 if wish.full else 2) * wish.trained_rows)


def _memory(layout: Layout) -> dict[str, Any]:
    memory = layout.memory
    parts = {name: round(size / GIGA, 2) for name, size in memory.by_part().items()}
    total = memory.total / GIGA
    band = {"total_from": round(total * (1 + BAND[0]), 1), "total_to": round(total * (1 + BAND[1]), 1)}
    return {"mesh": str(layout.mesh), "rank": memory.rank, **parts, "total": round(total, 1), **band}


def _losing(plan: Plan) -> list[str]:
    """Why layouts lose, in words."""
    found = []
    if plan.fitting and (best := plan.fitting[0].step):
        for layout in plan.fitting[SHOWN : SHOWN + REASONS]:
            step = layout.step
            assert step
            worst = max((step.rollout, step.training), key=lambda part: part.seconds(LIKELY))
            slower = step.seconds(LIKELY) / best.seconds(LIKELY)
            found.append(
                f"{layout.mesh} × {layout.n_engines}: {slower:.1f} times as long; {worst.bound(LIKELY)} bound it"
            )
    for layout in plan.too_large[:REASONS]:
        parts = layout.memory.by_part()
        largest = max(parts, key=lambda name: parts[name])
        missing = -layout.memory.spare / GIGA
        found.append(
            f"{layout.mesh} × {layout.n_engines}: lacks {missing:.1f} GB a rank; "
            f"{largest} take {parts[largest] / GIGA:.1f}"
        )
    if plan.undivided:
        found.append(f"{len(plan.undivided)} more do not divide the model, such as {plan.undivided[0][0]}")
    return found


def _beside(base: Base, wish: Wish, group: Group) -> str:
    """The fewest devices for an adapter and for full tuning, of 1, 2, 4, 8 and so on."""

    def words(full: bool) -> str:
        changed = Wish(**{**vars(wish), "full": full})
        name = "full tuning" if full else f"LoRA of rank {wish.rank}"
        layout = smallest_group(base, changed, group.device)
        if layout is None:
            return f"{name} fits no group of up to 1024"
        return f"{name} fits {layout.mesh.n_ranks} ({layout.mesh}, {layout.memory.total / GIGA:.0f} GB each)"

    return f"The fewest {group.device.name} of 1, 2, 4, 8 …: {words(full=False)}; {words(full=True)}."
