"""Tensors' names as the decoder's families know them, from those of published folders. Knows no tensor."""

from __future__ import annotations

from collections.abc import Sequence

VISION = "vision."


def own_name(name: str) -> str:
    """A published tensor's name as the decoder's families know it; a tower's begins with `vision.`.

    Folders of one model differ in what stands before the names, by the age of what wrote them.
    """
    # Newer folders put the decoder and the tower below one common `model.`, older ones do not.
    if name.startswith(BESIDE):
        name = name.removeprefix("model.")
    return next((own + name.removeprefix(theirs) for theirs, own in PREFIXES if name.startswith(theirs)), name)


BESIDE = ("model.vision_tower.", "model.multi_modal_projector.", "model.visual.", "model.language_model.")
PREFIXES: Sequence[tuple[str, str]] = (
    ("vision_tower.", "vision.tower."),
    ("multi_modal_projector.", "vision.projector."),
    ("visual.", "vision.tower."),
    # The first prefix that fits counts, so longer ones stand before those that they begin with.
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model."),
)
