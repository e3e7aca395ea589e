"""Routes of a datum out of the records that its spans name."""

import numpy as np

from loreloop.http.tinker.expert_routes import routes_of
from loreloop.protocol.training import Span
from loreloop.store.rows import SequenceRecord

N_EACH = 2  # layers that route × choices


def record(n_prompt, n_drawn, first, base="moe"):
    """A sequence whose position p went to the expert first + p everywhere."""
    routes = np.repeat(np.arange(first, first + n_prompt + n_drawn - 1, dtype="<i2"), N_EACH).tobytes()
    return SequenceRecord(b"\0" * 4 * n_prompt, b"\0" * 4 * n_drawn, b"", None, base, routes)


RECORDS = {"a": record(3, 4, 0), "b": record(2, 2, 20), "other": record(2, 2, 40, "another"), "dense": record(2, 2, 0)}
RECORDS["dense"] = SequenceRecord(b"\0" * 8, b"\0" * 8, b"", None, "moe", None)


def experts(*spans):
    routes = routes_of([Span(*span) for span in spans], RECORDS, "moe")
    return None if routes is None else np.frombuffer(routes, "<i2").reshape(-1, N_EACH)[:, 0].tolist()


def test_prompt_and_output_are_counted_from_their_own_beginning():
    assert experts(("a", 1, 2, False), ("a", 0, 3, True)) == [1, 2, 3, 4, 5]


def test_several_sequences_follow_one_another():
    assert experts(("a", 0, 1, False), ("b", 1, 1, False), ("b", 0, 1, True)) == [0, 21, 22]


def test_a_sequence_s_last_token_is_free():
    assert experts(("a", 2, 2, True)) == [5, -1]


def test_what_was_not_recorded_or_is_of_another_base_is_free():
    assert experts(("a", 0, 2, False), ("dense", 0, 2, False), ("other", 0, 1, False)) == [0, 1, -1, -1, -1]


def test_without_any_record_of_this_base_there_are_none():
    assert experts(("dense", 0, 2, False), ("other", 0, 1, False)) is None
    assert experts() is None
