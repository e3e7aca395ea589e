"""What the demo of the loop claims, held against what it has found. Plain values; knows no client and no loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """What one run of the demo has measured. `satisfaction` are shares of unseen questions whose answers please, before
    the first cycle and after each, and `weights` what was asked then; `planted` is the verdict on the bad candidate;
    the shares of Zoe's corrections that come back are those for herself and for somebody else."""

    satisfaction: tuple[float, ...]
    weights: tuple[str, ...]
    cycles: tuple[str, ...]
    planted: str
    person_weights: str | None
    person_right: float
    others_right: float
    minutes: float

    @property
    def rise(self) -> float:
        """By how much satisfaction has grown."""
        return self.satisfaction[-1] - self.satisfaction[0]


@dataclass(frozen=True)
class Goals:
    """The least that the demo must show. Its time is told and no goal: a machine may be slow."""

    rise: float = 0.25
    person_right: float = 2 / 3
    planted: str = "rolled_back"

    def missed(self, found: Found) -> list[str]:
        """What was not shown, a sentence each."""
        wrong = {
            f"satisfaction rose by {found.rise:.2f}, where {self.rise:.2f} are the least": found.rise < self.rise,
            f"the planted candidate was {_words(found.planted)}, not {_words(self.planted)}": found.planted
            != self.planted,
            f"{found.person_right:.0%} of Zoe's corrections came back to her, where {self.person_right:.0%} are the "
            "least": found.person_right < self.person_right,
            "Zoe has no weights of her own": self.person_right > 0 and found.person_weights is None,
            f"{found.others_right:.0%} of Zoe's corrections came back to somebody else": found.others_right > 0,
        }
        return [sentence for sentence, is_wrong in wrong.items() if is_wrong]


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")
