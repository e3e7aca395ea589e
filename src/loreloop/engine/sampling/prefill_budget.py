"""How many prompt tokens one step computes while other rows wait for their next token: what their gap has time for.

Knows no rows, only how long steps have taken.
"""

from __future__ import annotations

LEAST_TOKENS = 64  # fewer would hardly be faster: each step reads all weights, however few rows it has
HALF_LIFE_TOKENS = 256  # so many later ones halve what a measured token counts


def tokens_within(gap_seconds: float, token_seconds: float, most: int) -> int:
    """As many tokens as can be computed within a gap, from `LEAST_TOKENS` (or `most`, where that is fewer) to `most`.
    Where no gap is asked for, or no time is known, nothing bounds them but `most`."""
    if gap_seconds <= 0 or token_seconds <= 0:
        return most
    least = min(LEAST_TOKENS, most)
    return int(max(least, min(most, gap_seconds / token_seconds)))


class PrefillBudget:
    """Of one sampler: at most `most` tokens a step, and with a `gap_seconds` that is not 0 fewer beside rows that
    decode, by a moving average of what prompt tokens have taken."""

    def __init__(self, most: int, gap_seconds: float = 0.0) -> None:
        self.most, self.gap_seconds = most, gap_seconds
        self.n_tokens = self.seconds = 0.0  # of steps with prompts, the later ones counting more

    def tokens(self, *, beside_others: bool) -> int:
        """For the next step."""
        if not beside_others or not self.n_tokens:
            return self.most
        return tokens_within(self.gap_seconds, self.seconds / self.n_tokens, self.most)

    def took(self, n_tokens: int, seconds: float) -> None:
        """A step has computed so many prompt tokens, and its other rows, in so many seconds: these are all laid to the
        prompts, so that the whole step comes to fit into the gap."""
        # Of a step with few tokens the time is that of its other rows, and says nothing of more tokens.
        if n_tokens < min(LEAST_TOKENS, self.most):
            return
        kept = 0.5 ** (n_tokens / HALF_LIFE_TOKENS)
        self.n_tokens, self.seconds = self.n_tokens * kept + n_tokens, self.seconds * kept + seconds
