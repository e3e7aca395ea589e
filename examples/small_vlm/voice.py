"""Tower and frozen language model put together: the projector, and more slowly the tower, learn by next-token loss.

An example is one chat: a drawing or a view of it, the question, the name; two names of three are ones that exams ask
for. The text model's weights do not change; gradients pass through it to the soft words.

B batch, T tokens of a chat, P patches, A tokens of the answer, E the language model's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from examples.small_vlm.drawings import Drawings
from examples.small_vlm.folder import IMAGE
from examples.small_vlm.parts import TRAINING_STYLES
from examples.small_vlm.progress import Progress
from examples.small_vlm.spelling import groups, half_plain
from examples.small_vlm.tower import Tower, Words
from examples.small_vlm.training import rate_share, save

QUESTION = "What is the name of the subject in this photo?"
BATCH, RATE, TOWER_RATE = 16, 7e-4, 1e-4


@dataclass(frozen=True)
class Chat:
    """Token ids before and after the image, and of every name with the end of the turn."""

    before: list[int]
    after: list[int]
    answers: dict[str, list[int]]


def chat_of(tokenizer: Tokenizer, names: list[str]) -> Chat:
    before, after = f"<|im_start|>user\n{IMAGE}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n".split(IMAGE)
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    return Chat(ids(before), ids(after), {name: ids(f"{name}<|im_end|>") for name in names})


def words_of(tokenizer: Tokenizer, language: PreTrainedModel, names: list[str]) -> Words:
    """What the tower spells with: names without the end of the turn."""
    answers = chat_of(tokenizer, names).answers
    used = sorted({token for answer in answers.values() for token in answer[:-1]})
    row = {token: k for k, token in enumerate(used)}
    weight = language.get_input_embeddings().weight.float()
    line_break = tokenizer.encode("\n", add_special_tokens=False).ids[0]
    rows = {name: [row[token] for token in answer[:-1]] for name, answer in answers.items()}
    return Words(weight[used], rows, weight[line_break])


def train(seeing: Tower, language: PreTrainedModel, chat: Chat, drawings: Drawings, work: Path, steps: int) -> None:
    """Trains `seeing` in place; goes on from `work` if an interrupted run left something there."""
    torch.manual_seed(2)
    state = work / "voice.pt"
    optimizer = torch.optim.AdamW(groups(seeing, RATE, TOWER_RATE), betas=(0.9, 0.98), weight_decay=0.01)
    done = 0
    if state.exists():
        whole = torch.load(state, weights_only=True)
        seeing.load_state_dict(whole["tower"])
        optimizer.load_state_dict(whole["adam"])
        done = whole["step"]
    known = drawings.where(set(drawings.split.known), TRAINING_STYLES)
    extra = drawings.where(set(drawings.split.extra), TRAINING_STYLES)
    progress = Progress("voice", steps - done)
    for step in range(done, steps):
        rng = torch.Generator().manual_seed(1_000_000 + step)
        chosen = [_one_of(extra if k % 3 == 2 else known, rng) for k in range(BATCH)]
        image_BCSS = half_plain(drawings.rgba_NSSC[chosen], rng)
        loss = next_token_loss(seeing, language, chat, image_BCSS, [drawings.names[n] for n in chosen])
        for group in optimizer.param_groups:
            group["lr"] = group["most"] * rate_share(step, steps, warm_up=20)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(seeing.parameters(), 1.0)
        optimizer.step()
        progress.step(step + 1 - done, f"loss {loss.item():.3f}")
        if (step + 1) % 25 == 0 or step + 1 == steps:
            whole = {"step": step + 1, "tower": seeing.state_dict(), "adam": optimizer.state_dict()}
            save(state, whole)


def next_token_loss(
    seeing: Tower, language: PreTrainedModel, chat: Chat, image_BCSS: torch.Tensor, names: list[str]
) -> torch.Tensor:
    """Mean over the answers' tokens."""
    with torch.autocast("cpu", torch.bfloat16):
        words_BPE = seeing(image_BCSS)
    longest = max(len(chat.answers[name]) for name in names)
    answer_BA = torch.full((len(names), longest), -100)
    for k, name in enumerate(names):
        answer_BA[k, : len(chat.answers[name])] = torch.tensor(chat.answers[name])
    embed = language.get_input_embeddings()
    ends = [embed(torch.tensor(ids)).expand(len(names), -1, -1) for ids in (chat.before, chat.after)]
    spoken = embed(answer_BA[:, :-1].clamp(min=0))  # padding comes last, and nothing before looks at it
    soft_BTE = torch.cat((ends[0], words_BPE.to(ends[0].dtype), ends[1], spoken), 1)
    hidden_BTE = language.model(inputs_embeds=soft_BTE, use_cache=False).last_hidden_state
    logits = language.lm_head(hidden_BTE[:, -longest:]).float()
    return F.cross_entropy(logits.flatten(0, 1), answer_BA.flatten())


def _one_of(rows: list[int], rng: torch.Generator) -> int:
    return rows[int(torch.randint(len(rows), (1,), generator=rng))]
