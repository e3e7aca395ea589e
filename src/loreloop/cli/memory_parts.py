"""`--importance` and `--refill` of the memory's verbs: which adapter judges what comes, and which writes what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loreloop.memory.condense import CountTokens
    from loreloop.memory.memory import Parts

SURFACE, LEARNED = "surface", "learned:"
EXTRACTIVE, WRITTEN = "extractive", "written:"

IMPORTANCE = click.option(
    "--importance",
    default=SURFACE,
    show_default=True,
    metavar="surface|learned:MODEL",
    help="What judges which text is worth keeping: its words alone, or a head of `memory train` (tinker://…).",
)
REFILL = click.option(
    "--refill",
    default=EXTRACTIVE,
    show_default=True,
    metavar="extractive|written:MODEL",
    help="What shortens a text: its own words are thinned out, or a model writes it anew (tinker://…).",
)


def asks_a_model(importance: str, refill: str) -> bool:
    """Whether one of the two options names a model, so that a server is needed."""
    return (importance, refill) != (SURFACE, EXTRACTIVE)


def parts_of(count: CountTokens, importance: str, refill: str, http: Any) -> Parts:
    """`http` is an `httpx.Client` at a server's OpenAI routes; it is asked only where a model is named."""
    from loreloop.memory.asked import sampler_over, verdict_over
    from loreloop.memory.generative import FillInTheMiddle
    from loreloop.memory.importance import SurfaceImportance
    from loreloop.memory.learned import LearnedImportance
    from loreloop.memory.memory import Parts
    from loreloop.memory.refill import ExtractiveRefill

    def post(body: Mapping[str, Any]) -> Any:
        from loreloop.cli.operator import checked

        return checked(http.post("/completions", json=body)).json()

    # Each part names its own model, and the two may be different adapters.
    head = model_in(importance, "--importance", SURFACE, LEARNED)
    writer = model_in(refill, "--refill", EXTRACTIVE, WRITTEN)
    return Parts(
        count,
        LearnedImportance(count, verdict_over(post, head)) if head else SurfaceImportance(),
        FillInTheMiddle(count, sampler_over(post, writer)) if writer else ExtractiveRefill(count),
    )


def model_in(given: str, option: str, plain: str, prefix: str) -> str:
    """The model's name, or "" for the plain choice."""
    from loreloop.protocol.errors import BadRequest

    name = given.removeprefix(prefix)
    if given == plain:
        return ""
    if name == given or not name:
        raise BadRequest(f"{option} is {given!r}; give {plain}, or {prefix} with a model behind it.")
    return name
