"""A rollout laid out as the protocol's losses take it: one row in which position i predicts target i.

Pure functions over numpy; knows no learner and no client. Legend: N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tinker
from numpy.typing import NDArray

from loreloop.learn.rollouts.values import Context, Observed, Rollout, Sampled

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """All arrays have shape (N,), where N is the length of `model_input`.

    `learned` marks targets that the model said and may learn from; `logprobs` and `revisions` are those of sampling
    time there, and 0 elsewhere. `earned` holds each turn's reward at the turn's last token, so that its sum is the
    episode's reward.
    """

    rollout: Rollout
    model_input: tinker.ModelInput
    targets: NDArray[np.int64]
    learned: NDArray[np.bool_]
    logprobs: Floats
    revisions: NDArray[np.int64]
    earned: Floats

    @property
    def n_learned(self) -> int:
        """How many targets are learned from."""
        return int(self.learned.sum())


def traces_of(rollout: Rollout) -> list[Trace]:
    """The rows of a rollout: one, or as many as an environment has broken it into. What was observed behind a row's
    last answer is left out, as nothing is learned there.

    What the turns' own rewards do not account for is earned at the very end. ValueError where there is no prompt.
    """
    rows = [row for row in rollout.contexts if _until_last_answer(row.turns)]
    # Environments may reward turns, the episode as a whole, or both; estimates over time need every bit at some token.
    rest = rollout.reward - sum(turn.reward for row in rows for turn in row.turns if isinstance(turn, Sampled))
    return [_trace(rollout, row, rest if row is rows[-1] else 0.0) for row in rows]


def _trace(rollout: Rollout, row: Context, rest: float) -> Trace:
    if row.prompt.length == 0:
        raise ValueError("a rollout to learn from has a prompt of at least one token")
    # Positions behind the last answer have no target that is learned, and would be computed for nothing.
    turns = _until_last_answer(row.turns)
    said = [token for turn in turns for token in turn.tokens]
    # Position i predicts what stands at i + 1, so the first token is no target and the last one is no input.
    targets = np.array([*token_ids(row.prompt), *said][1:], np.int64)
    n_before = row.prompt.length - 1  # targets that lie in the prompt
    return Trace(
        rollout=rollout,
        model_input=followed_by(row.prompt, said[:-1]),
        targets=targets,
        learned=_row(n_before, [[_is_learned(turn)] * len(turn.tokens) for turn in turns]).astype(bool),
        logprobs=_row(n_before, [_said(turn, "logprobs") for turn in turns]).astype(np.float32),
        revisions=_row(n_before, [_said(turn, "revisions") for turn in turns]).astype(np.int64),
        earned=_earned(n_before, row.turns, rest).astype(np.float32),
    )


def token_ids(prompt: tinker.ModelInput) -> list[int]:
    """The ids of a prompt; every token of an image is 0, which stands for no word and is never a target."""
    ids: list[int] = []
    for chunk in prompt.chunks:
        ids += chunk.tokens if isinstance(chunk, tinker.EncodedTextChunk) else [0] * chunk.length
    return ids


def followed_by(prompt: tinker.ModelInput, tokens: Sequence[int]) -> tinker.ModelInput:
    """The prompt with tokens behind it, exactly as they are."""
    if not tokens:
        return prompt
    return tinker.ModelInput(chunks=[*prompt.chunks, tinker.EncodedTextChunk(tokens=list(tokens))])


def whole_input(trace: Trace) -> tinker.ModelInput:
    """The row with its last target behind it, as a sampling client scores it: its log-probabilities from index 1 on
    are those of the targets."""
    return followed_by(trace.model_input, [int(trace.targets[-1])])


def _until_last_answer(turns: Sequence[Observed | Sampled]) -> list[Observed | Sampled]:
    said = [index for index, turn in enumerate(turns) if isinstance(turn, Sampled) and turn.tokens]
    return list(turns[: said[-1] + 1]) if said else []


def _is_learned(turn: Observed | Sampled) -> bool:
    return isinstance(turn, Sampled) and turn.learned


def _said(turn: Observed | Sampled, field: Literal["logprobs", "revisions"]) -> Sequence[float]:
    # Zeros keep the row as long as the targets; `learned` is False there, so no loss ever reads them.
    if not isinstance(turn, Sampled):
        return [0] * len(turn.tokens)
    return turn.logprobs if field == "logprobs" else turn.revisions


def _row(n_before: int, parts: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array([0.0] * n_before + [value for part in parts for value in part], np.float64)


def _earned(n_before: int, turns: Sequence[Observed | Sampled], rest: float) -> NDArray[np.float64]:
    """Each turn's reward at its last token, and what is left at the very end."""
    row = np.zeros(n_before + sum(len(turn.tokens) for turn in _until_last_answer(turns)), np.float64)
    place = n_before
    for turn in turns:
        place += len(turn.tokens)
        if isinstance(turn, Sampled):
            # A turn of no tokens has no place of its own; its reward goes to the token before it, or to the first.
            row[min(max(place - 1, n_before), len(row) - 1)] += turn.reward
    row[-1] += rest
    return row
