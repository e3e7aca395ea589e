"""The part that sees: CLIP's vision transformer, small, and the projector that turns its patches into soft words.

It learns three things at once from the training styles: what the teacher sees in a drawing and in each part of it
(cosines), which name the drawing has (cross entropy over names), and to spell: patch k of 16 comes out of the projector
nearer to the embedding of the name's k-th token than to others. Spelling is what a frozen language model can read
before it has seen an image, and it costs a hundredth of a pass through it.

B batch, P patches, D the tower's width, E the language model's, F the teacher's, K tokens spelled, V their words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from examples.small_vlm import start, views
from examples.small_vlm.drawings import SIDE, Drawings, on_white
from examples.small_vlm.parts import HELD_OUT_STYLES, TRAINING_STYLES
from examples.small_vlm.progress import Progress
from examples.small_vlm.targets import Targets
from examples.small_vlm.training import rate_share, save

PATCH = 24  # 16 patches an image: a token each, and the language model's time is spent by the token
WIDTH, LAYERS = 320, 6
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // 64,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": WIDTH,
    "hidden_act": "gelu",
}
SPELLED = 6  # tokens of a name that patches spell; the patches after them are free
BATCH, RATE = 128, 1e-3


@dataclass(frozen=True)
class Words:
    """The language model's side: its embeddings of all tokens that names are made of, and names as rows of them."""

    embedding_VE: torch.Tensor
    tokens_of: dict[str, list[int]]  # rows of `embedding_VE`
    line_break_E: torch.Tensor


class Tower(nn.Module):
    def __init__(self, language_width: int) -> None:
        super().__init__()
        self.vision = CLIPVisionModel(CLIPVisionConfig(**VISION))
        self.linear_1 = nn.Linear(WIDTH, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)

    def forward(self, image_BCSS: torch.Tensor) -> torch.Tensor:
        """Normalised images to what the language model gets, BPE."""
        return self.words(self.see(image_BCSS)[0])

    def see(self, image_BCSS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The patches, BPD, and the pooled view, twice as wide."""
        seen = self.vision(pixel_values=image_BCSS)
        patches_BPD = seen.last_hidden_state[:, 1:]
        return patches_BPD, torch.cat((seen.pooler_output, patches_BPD.mean(1)), -1)

    def words(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(patches_BPD)))


class Heads(nn.Module):
    """What judges the pooled view while the tower learns; not part of the model."""

    def __init__(self, n_names: int, targets: Targets) -> None:
        super().__init__()
        self.norm, self.part_norm = nn.LayerNorm(2 * WIDTH), nn.LayerNorm(WIDTH)
        self.names, self.whole = nn.Linear(2 * WIDTH, n_names), nn.Linear(2 * WIDTH, targets.whole_NK.shape[1])
        self.parts = nn.Linear(WIDTH, targets.map_NKHW.shape[1])


@dataclass(frozen=True)
class Lesson:
    """One step's losses, and the share of names that were right."""

    names: torch.Tensor
    whole: torch.Tensor
    parts: torch.Tensor
    spelling: torch.Tensor
    right: float

    @property
    def loss(self) -> torch.Tensor:
        return self.names + 3 * self.whole + 5 * self.parts + self.spelling

    def __str__(self) -> str:
        return (
            f"names {self.names:.2f} ({self.right:.2f} right)  teacher {self.whole:.2f} whole {self.parts:.2f} parts  "
            f"spelling {self.spelling:.2f}"
        )


def train(drawings: Drawings, words: Words, work: Path, steps: int) -> Tower:
    """Trains for `steps`, or what an interrupted run left of them; tells how it does on styles it never saw."""
    torch.manual_seed(1)
    names = drawings.split.known + drawings.split.extra
    rows = drawings.where(set(names), TRAINING_STYLES)
    targets = Targets(drawings, rows, SIDE // PATCH)
    tower, heads = Tower(words.embedding_VE.shape[1]), Heads(len(names), targets)
    start.begin(tower.vision, _views(drawings, rows[:: 1 + len(rows) // 512], torch.Generator().manual_seed(1))[0])
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    state = work / "tower.pt"
    done = _resume(state, tower, heads, optimizer)
    progress = Progress("tower", steps - done)
    for step in range(done, steps):
        rng = torch.Generator().manual_seed(step)
        chosen = [rows[k] for k in torch.randint(len(rows), (BATCH,), generator=rng).tolist()]
        lesson = _lesson(tower, heads, drawings, chosen, rng, targets=targets, words=words)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_share(step, steps, warm_up=50)
        optimizer.zero_grad(set_to_none=True)
        lesson.loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.step(step + 1 - done, str(lesson))
        if (step + 1) % 200 == 0 or step + 1 == steps:
            _save(state, step + 1, tower, heads, optimizer)
    tower.eval()
    _report(tower, heads, drawings)
    return tower


def _views(drawings: Drawings, chosen: list[int], rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    image_BCSS, moves_B23 = views.varied(drawings.rgba_NSSC[chosen], rng)
    return views.normalise(image_BCSS), moves_B23


def _lesson(
    tower: Tower,
    heads: Heads,
    drawings: Drawings,
    chosen: list[int],
    rng: torch.Generator,
    *,
    targets: Targets,
    words: Words,
) -> Lesson:
    image_BCSS, moves_B23 = _views(drawings, chosen, rng)
    names = drawings.split.known + drawings.split.extra
    number = {name: k for k, name in enumerate(names)}
    said = [drawings.names[n] for n in chosen]
    name_B = torch.tensor([number[name] for name in said])
    with torch.autocast("cpu", torch.bfloat16):
        patches_BPD, pooled_BD = tower.see(image_BCSS)
        words_BPE = tower.words(patches_BPD)
        normed_BD = heads.norm(pooled_BD)
        logits, whole, parts = heads.names(normed_BD), heads.whole(normed_BD), heads.parts(heads.part_norm(patches_BPD))
    return Lesson(
        names=F.cross_entropy(logits.float(), name_B, label_smoothing=0.1),
        whole=1 - F.cosine_similarity(whole.float(), targets.whole(chosen), dim=-1).mean(),
        parts=1 - F.cosine_similarity(parts.float(), targets.parts(chosen, moves_B23), dim=-1).mean(),
        spelling=spelled(words_BPE.float(), said, words),
        right=float((logits.argmax(-1) == name_B).float().mean()),
    )


def spelled(words_BPE: torch.Tensor, names: list[str], words: Words) -> torch.Tensor:
    """Cross entropy of the right word among all words of names, by distance, over the first patches."""
    target_BK = torch.full((len(names), SPELLED), -100)
    for k, name in enumerate(names):
        tokens = words.tokens_of[name][:SPELLED]
        target_BK[k, : len(tokens)] = torch.tensor(tokens)
    return F.cross_entropy(_nearness(words_BPE[:, :SPELLED], words).flatten(0, 1), target_BK.flatten())


def _nearness(words_BKE: torch.Tensor, words: Words) -> torch.Tensor:
    """Minus the squared distance to every word, in units in which two words are about 16 apart."""
    embedding_VE = words.embedding_VE
    square_V = embedding_VE.square().sum(-1)
    distance_BKV = words_BKE.square().sum(-1, keepdim=True) - 2 * words_BKE @ embedding_VE.T + square_V
    return -8 * distance_BKV / square_V.mean()


def _report(tower: Tower, heads: Heads, drawings: Drawings) -> None:
    """The name head on drawings as they are; chance is 1 in the number of known names."""
    known = drawings.split.known
    for said, styles in (("training styles", TRAINING_STYLES), ("held-out styles", HELD_OUT_STYLES)):
        rows = drawings.where(set(known), styles)
        with torch.inference_mode():
            images = (
                views.normalise(on_white(drawings.rgba_NSSC[rows[k : k + 256]])) for k in range(0, len(rows), 256)
            )
            pooled_ND = torch.cat([tower.see(image_BCSS)[1] for image_BCSS in images])
            best = heads.names(heads.norm(pooled_ND))[:, : len(known)].argmax(-1)
        right = [known[k] == drawings.names[n] for k, n in zip(best.tolist(), rows, strict=True)]
        print(f"tower     {said}: {sum(right) / len(right):.3f} of {len(rows)} drawings, {len(known)} names")


def _save(state: Path, step: int, tower: Tower, heads: Heads, optimizer: torch.optim.Optimizer) -> None:
    whole = {"step": step, "tower": tower.state_dict(), "heads": heads.state_dict(), "adam": optimizer.state_dict()}
    save(state, whole)


def _resume(state: Path, tower: Tower, heads: Heads, optimizer: torch.optim.Optimizer) -> int:
    if not state.exists():
        return 0
    whole = torch.load(state, weights_only=True)
    tower.load_state_dict(whole["tower"])
    heads.load_state_dict(whole["heads"])
    optimizer.load_state_dict(whole["adam"])
    return whole["step"]
