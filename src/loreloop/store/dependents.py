"""What of the store was made with a base model, and is of no use without it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from loreloop.store.deployments import all as all_deployments
from loreloop.store.schema import CHECKPOINTS, RUNS

MOST_DEPLOYMENTS = 10_000


@dataclass(frozen=True)
class Dependents:
    """How much would be of no use without a base model; `str()` says it in words, empty where it is nothing."""

    n_checkpoints: int
    deployments: tuple[str, ...]

    def __str__(self) -> str:
        n = self.n_checkpoints
        parts = [f"{n} checkpoint{'s' if n > 1 else ''}"] if n else []
        if self.deployments:
            more = f" and {len(self.deployments) - 3} more" if len(self.deployments) > 3 else ""
            parts.append(f"the deployments {', '.join(self.deployments[:3])}{more}")
        return " and ".join(parts)


def of_base(connection: Connection, base_model: str) -> Dependents:
    """Checkpoints of runs on the base, whoever owns them, and deployments one of whose arms is on it."""
    runs = select(RUNS.c.id).where(RUNS.c.base_model == base_model)
    n = connection.scalar(select(func.count()).select_from(CHECKPOINTS).where(CHECKPOINTS.c.run_id.in_(runs))) or 0
    deployed = all_deployments(connection, MOST_DEPLOYMENTS)
    names = (found.name for found in deployed if any(arm.base_model == base_model for arm in found.split.arms))
    return Dependents(n, tuple(names))
