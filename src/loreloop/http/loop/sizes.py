"""How large the bodies of feedback may be: as large as what they may hold with each letter written as an escape."""

from __future__ import annotations

MOST_BYTES = 4 << 20  # by a key: a text of 2^18 characters in the longest writing that JSON has
MOST_PUBLIC_BYTES = 1 << 19  # by a token or a link, whose texts are shorter
MOST_OTHER_BYTES = 1 << 17  # what asks for a token or a link, or declares metrics
