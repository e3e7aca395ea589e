"""Statements without what their deployment does not keep of turns: a comment or a correction repeats what was said."""

from __future__ import annotations

import msgspec

from loreloop.protocol.feedback import GOLDEN_TAG, PREFERENCE, Feedback
from loreloop.text.redaction import redactor


def redacted(said: Feedback, rules: tuple[str, ...]) -> Feedback:
    """The statement with its texts looked at: value, reason and tags. Ids and `who` stay, as those of turns do: a
    person is found by them."""
    found = redactor(rules)
    is_text = isinstance(said.value, str) and said.metric != PREFERENCE
    value = found.text(str(said.value)) if is_text else said.value
    tags = {name: text if name == GOLDEN_TAG else found.text(text) for name, text in said.tags.items()}
    return msgspec.structs.replace(said, value=value, why=found.text(said.why), tags=tags)
