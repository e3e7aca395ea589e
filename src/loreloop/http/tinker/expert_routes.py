"""Routes of a datum: where the sampler's router sent its tokens, put together from the records that its spans name.

A record holds the routes of its prompt and output but for the last token, which no step has computed. Positions without
a record are free: the router decides there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loreloop.protocol.token_ids import n_ids
from loreloop.protocol.training import FREE_ROUTE, Span
from loreloop.store.rows import SequenceRecord


def routes_of(spans: Sequence[Span], records: Mapping[str, SequenceRecord], base_model: str) -> bytes | None:
    """Routes of the tokens that `spans` tile, or None where nothing of them is known of this base."""
    widths = {name: _width(record, base_model) for name, record in records.items()}
    # Records of the same base have the same width; a record that has none does not count.
    width = max((widths[span.sequence_id] for span in spans), default=0)
    if width == 0:
        return None
    parts = []
    for span in spans:
        record, known = records[span.sequence_id], b""
        if widths[span.sequence_id] == width and record.routes:
            # Routes lie in one row over prompt and output, and offsets of a sampled span count from the output's
            # beginning.
            first = span.offset + (n_ids(record.prompt) if span.sampled else 0)
            known = record.routes[first * width : (first + span.length) * width]
        # The last token of a record was never computed, so a span that reaches it is filled up with free positions.
        parts.append(known + FREE_ROUTE * ((span.length * width - len(known)) // len(FREE_ROUTE)))
    return b"".join(parts)


def _width(record: SequenceRecord, base_model: str) -> int:
    """Bytes a token; 0 where the record has no routes of this base."""
    n_computed = n_ids(record.prompt) + n_ids(record.tokens) - 1
    if not record.routes or record.base_model != base_model or n_computed < 1:
        return 0
    return len(record.routes) // n_computed
