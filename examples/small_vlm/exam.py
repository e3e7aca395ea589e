"""What the finished folder can do on drawing styles that it never saw, as `transformers` reads it.

Two numbers: how often the right name has the highest likelihood among 20 (its own and 19 drawn at random), and how
often the greedy answer is the name, letter for letter.

B images, K candidate names, A tokens of an answer, V the vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from examples.small_vlm import views, voice
from examples.small_vlm.drawings import Drawings, on_white

WAYS = 20
BATCH = 16


@dataclass(frozen=True)
class Marks:
    """Shares of `images` drawings answered correctly."""

    closed_set: float
    generated: float
    images: int


class Candidate:
    """The folder under examination."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        chat = voice.chat_of(self.tokenizer, names)
        n_patches = self.model.config.image_seq_length
        self.prompt = torch.tensor([*chat.before, *[self.model.config.image_token_id] * n_patches, *chat.after])
        self.answers = chat.answers

    @torch.inference_mode()
    def generate(self, image_BCSS: torch.Tensor, max_tokens: int = 8) -> list[str]:
        prompt = self.prompt.expand(len(image_BCSS), -1)
        out = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=image_BCSS.to(self.model.dtype),
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        return [self.tokenizer.decode(ids).strip() for ids in out[:, prompt.shape[1] :].tolist()]

    @torch.inference_mode()
    def likeliest(self, image_BCSS: torch.Tensor, candidates: list[list[str]]) -> list[str]:
        """For each image the one of its K candidates with the highest log-probability, end of the turn included."""
        n_candidates = len(candidates[0])
        prompt = self.prompt.expand(len(image_BCSS), -1)
        seen = self.model(input_ids=prompt, pixel_values=image_BCSS.to(self.model.dtype), logits_to_keep=1)
        answers = [self.answers[name] for names in candidates for name in names]
        longest = max(map(len, answers))
        padded = torch.tensor([answer + [-100] * (longest - len(answer)) for answer in answers])
        cache = seen.past_key_values
        cache.batch_repeat_interleave(n_candidates)
        spoken = self.model(input_ids=padded[:, :-1].clamp(min=0), past_key_values=cache).logits
        first = seen.logits.repeat_interleave(n_candidates, 0)
        logprobs = torch.cat((first, spoken), 1).float().log_softmax(-1)
        score = -F.nll_loss(logprobs.flatten(0, 1), padded.flatten(), reduction="none").view(padded.shape).sum(-1)
        best = score.view(len(candidates), n_candidates).argmax(-1)
        return [names[k] for names, k in zip(candidates, best.tolist(), strict=True)]


def examine(
    folder: Path, drawings: Drawings, names: list[str], styles: tuple[str, ...], *, n_images: int = 200
) -> Marks:
    """`names` are both what is shown and what the 19 wrong candidates are drawn from."""
    rng = random.Random(0)
    rows = drawings.where(set(names), styles)
    rows = rng.sample(rows, min(n_images, len(rows)))
    candidate = Candidate(folder, names)
    closed = generated = 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        image = views.normalise(on_white(drawings.rgba_NSSC[batch]))
        right = [drawings.names[n] for n in batch]
        others = [rng.sample([n for n in names if n != name], min(WAYS, len(names)) - 1) for name in right]
        picked = candidate.likeliest(image, [[name, *wrong] for name, wrong in zip(right, others, strict=True)])
        closed += sum(a == b for a, b in zip(picked, right, strict=True))
        generated += sum(a == b for a, b in zip(candidate.generate(image), right, strict=True))
    return Marks(closed / len(rows), generated / len(rows), len(rows))
