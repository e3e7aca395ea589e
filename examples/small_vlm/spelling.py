"""The projector learns to put soft words where the language model's own are.

The tower was taught which word comes k-th, which is a matter of directions; a language model also wants its inputs to
lie among its embeddings, and does not read patches many times as long. So the whole tower goes on here, its projector
first scaled down to the length of embeddings: patch k at the k-th token of the name, patches after the name near a line
break, from which they may depart to say more.

B batch, P patches, E the language model's width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from examples.small_vlm import views
from examples.small_vlm.drawings import Drawings, on_white
from examples.small_vlm.parts import TRAINING_STYLES
from examples.small_vlm.progress import Progress
from examples.small_vlm.tower import BATCH, SPELLED, Tower, Words, spelled
from examples.small_vlm.training import rate_share, save

RATE, TOWER_RATE = 1e-3, 4e-4
NEAR = 8.0  # weight of the distance beside the choice of words
FREE = 0.25  # weight of the pull on patches after the name


def train(seeing: Tower, words: Words, drawings: Drawings, work: Path, steps: int) -> None:
    """Trains `seeing` in place, or takes the result of an earlier run; a few minutes."""
    state = work / "spelling.pt"
    if state.exists():
        seeing.load_state_dict(torch.load(state, weights_only=True))
        return
    rows = drawings.where({*drawings.split.known, *drawings.split.extra}, TRAINING_STYLES)
    _shorten(seeing, drawings.rgba_NSSC[rows[:: 1 + len(rows) // 256]], words)
    optimizer = torch.optim.AdamW(groups(seeing, RATE, TOWER_RATE), betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress("spelling", steps)
    for step in range(steps):
        rng = torch.Generator().manual_seed(500_000 + step)
        chosen = [rows[k] for k in torch.randint(len(rows), (BATCH,), generator=rng).tolist()]
        image_BCSS = half_plain(drawings.rgba_NSSC[chosen], rng)
        with torch.autocast("cpu", torch.bfloat16):
            words_BPE = seeing(image_BCSS)
        names = [drawings.names[n] for n in chosen]
        right, apart = spelled(words_BPE.float(), names, words), distance(words_BPE.float(), names, words)
        for group in optimizer.param_groups:
            group["lr"] = group["most"] * rate_share(step, steps, warm_up=20)
        optimizer.zero_grad(set_to_none=True)
        (right + NEAR * apart).backward()
        nn.utils.clip_grad_norm_(seeing.parameters(), 1.0)
        optimizer.step()
        progress.step(step + 1, f"words {right.item():.2f}  distance {apart.item():.3f}")
    save(state, seeing.state_dict())


def distance(words_BPE: torch.Tensor, names: list[str], words: Words) -> torch.Tensor:
    """The mean squared distance of patches to where they belong, in units of an embedding's own square."""
    goal_BPE = words.line_break_E.expand_as(words_BPE).clone()
    weight_BP = torch.full(words_BPE.shape[:2], FREE)
    for k, name in enumerate(names):
        tokens = words.tokens_of[name]
        goal_BPE[k, : len(tokens)] = words.embedding_VE[tokens]
        weight_BP[k, : len(tokens)] = 1.0
    apart_BP = F.mse_loss(words_BPE, goal_BPE, reduction="none").sum(-1)
    return (weight_BP * apart_BP).sum() / weight_BP.sum() / words.embedding_VE.square().sum(-1).mean()


def half_plain(rgba_BSSC: np.ndarray, rng: torch.Generator) -> torch.Tensor:
    """Views, but every other drawing as it is on white: the tower is surer of these, and words are learned faster."""
    image_BCSS = views.varied(rgba_BSSC, rng)[0]
    image_BCSS[::2] = on_white(rgba_BSSC[::2])
    return views.normalise(image_BCSS)


def groups(seeing: Tower, rate: float, tower_rate: float) -> list[dict[str, object]]:
    """The projector learns fast after the tower's own training, the tower slowly."""
    projector = nn.ModuleList((seeing.linear_1, seeing.linear_2))
    return [
        {"params": list(projector.parameters()), "lr": rate, "most": rate},
        {"params": list(seeing.vision.parameters()), "lr": tower_rate, "most": tower_rate},
    ]


@torch.inference_mode()
def _shorten(seeing: Tower, rgba_BSSC: np.ndarray, words: Words) -> None:
    """Scales the projector's output, so that the patches that spell are as long as embeddings."""
    seen_BPE = seeing(views.normalise(on_white(rgba_BSSC)))[:, :SPELLED]
    share = words.embedding_VE.norm(dim=-1).mean() / seen_BPE.norm(dim=-1).mean()
    for parameter in seeing.linear_2.parameters():
        parameter.mul_(share)
