"""Whose use is counted, what was used, and what an audit log says: as frozen values."""

from __future__ import annotations

from typing import Any

import msgspec

HOUR_SECONDS = 3600


class Account(msgspec.Struct, frozen=True):
    """One hour (counted from the epoch) of one session of a key on one base model; `session_id` is empty for what came
    by OpenAI's or Anthropic's API."""

    hour: int
    key_id: str
    session_id: str
    base_model: str


class Spent(msgspec.Struct, frozen=True):
    """Tokens that an account has used. `prompt_tokens` were computed, `cached_tokens` were found computed already."""

    trained_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    n_checkpoints: int = 0

    def plus(self, more: Spent) -> Spent:
        """Both together."""
        return Spent(*(getattr(self, name) + getattr(more, name) for name in self.__struct_fields__))


class Used(msgspec.Struct, frozen=True):
    """What one account has used, with what is known of its key and its session by now."""

    account: Account
    spent: Spent
    key_name: str | None
    project_id: str | None
    user_metadata: dict[str, Any] | None


class Stored(msgspec.Struct, frozen=True):
    """Checkpoints that one key keeps in one project."""

    project_id: str
    key_id: str
    key_name: str
    n_checkpoints: int
    size_bytes: int


class AuditEntry(msgspec.Struct, frozen=True):
    """Something that a key did at a moment, in seconds since the epoch; `event` is `<thing>_<action>`."""

    created: float
    event: str
    key_id: str
    details: dict[str, Any]
