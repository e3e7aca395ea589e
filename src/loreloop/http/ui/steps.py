"""The page of one step of a run: what it has learned from, as long as the journal has it. For the run's own key alone,
since these are its words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from loreloop.http.services import INFER, Services, caller, services
from loreloop.http.ui.frame import NOTHING, page_route
from loreloop.http.ui.rendering import render
from loreloop.http.ui.samples import (
    Colouring,
    Sample,
    Texts,
    bins_of,
    first_of,
    in_bin,
    samples_of,
    shade_of,
    with_tokens,
)
from loreloop.protocol.errors import BadRequest, LoreloopError, NotFound
from loreloop.store import runs, series, step_passes
from loreloop.store.rows import RunRow
from loreloop.store.step_passes import SeenStep
from loreloop.text.tokenizer import Detokenizer

MOST_SAMPLES = 32  # shown at once
COLOURINGS = get_args(Colouring)


async def step_page(request: Request) -> Response:
    """The samples of one step, those of one prompt side by side; `bin` names those of one advantage."""
    key, served = caller(request, INFER), services(request)
    run = served.store.read(runs.get, key.id, str(request.path_params["run_id"]))
    text = str(request.path_params["step"])
    step = int(text) if text.isdecimal() and len(text) < 12 else 0
    seen = await served.store.read_apart(step_passes.of_step, served.store.segments, run.id, step)
    if seen is None:
        raise NotFound(NOTHING)
    data, drawn = await asyncio.to_thread(step_data, served, run, seen, _bin(request), _colouring(request))
    newest = served.store.read(series.last_of, run.id)
    drawn["is_last"] = newest is None or step >= newest.last_step
    return render(request, "step.html", {"run": run.id, "step": step, **data}, drawn)


def step_data(
    served: Services, run: RunRow, seen: SeenStep, chosen: int | None, by: Colouring | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page tells, and what only the page itself needs; for a thread, since a step may be large."""
    read = {sample.number: (sample, arrays) for sample, arrays in samples_of(seen.passes)}
    everything = [sample for sample, _ in read.values()]
    bins = bins_of(everything)
    wanted = [one for one in everything if chosen is None or in_bin(one, bins, chosen)]
    texts = _texts(served, run)
    first = first_of(_grouped(wanted), MOST_SAMPLES)
    groups = [[with_tokens(*read[sample.number], texts) for sample in group] for group in first]
    shown = [sample for group in groups for sample in group]
    has_sampler = any(sample.difference is not None for sample in everything)
    colouring: Colouring = by or ("difference" if has_sampler else "surprise")
    largest = max((abs(token.advantage or 0.0) for one in shown for token in one.tokens), default=0.0)
    data = {
        "n_passes": seen.n_passes,
        "n_kept": len(seen.passes),
        "n_samples": len(everything),
        "n_chosen": len(wanted),
        "n_groups": len({sample.group for sample in everything}),
        "bins": msgspec.to_builtins(bins),
        "groups": msgspec.to_builtins(groups),
    }
    shades = {
        (sample.number, place): shade_of(token, colouring, largest)
        for sample in shown
        for place, token in enumerate(sample.tokens)
    }
    most = max((each.n for each in bins), default=1)
    drawn = {"shades": shades, "by": colouring, "colourings": COLOURINGS, "chosen": chosen, "most": most}
    drawn["n_shown"] = len(shown)
    return data, drawn


def _grouped(samples: Sequence[Sample]) -> list[list[Sample]]:
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return list(groups.values())


def _texts(served: Services, run: RunRow) -> Texts:
    """How ids become texts; by their numbers where the base model is not served any more."""
    try:
        tokenizer = served.texts.of(served.names.folder(run.base_model)).tokenizer
    except LoreloopError:
        return lambda ids: [f"{number} " for number in ids]

    def texts(ids: Sequence[int]) -> list[str]:
        reader = Detokenizer(tokenizer)
        return [reader.push(number) if number >= 0 else "…" for number in ids]

    return texts


def _bin(request: Request) -> int | None:
    text = request.query_params.get("bin")
    if text is not None and not (text.isdecimal() and len(text) < 4):
        raise BadRequest(f"bin is {text[:20]!r}; it must be the number of a bar of the histogram.")
    return None if text is None else int(text)


def _colouring(request: Request) -> Colouring | None:
    text = request.query_params.get("by")
    if text is not None and text not in COLOURINGS:
        raise BadRequest(f"by is {text[:20]!r}; it must be one of {', '.join(COLOURINGS)}.")
    return text  # type: ignore[return-value]


ROUTES = [page_route("/runs/{run_id}/steps/{step}", step_page)]
