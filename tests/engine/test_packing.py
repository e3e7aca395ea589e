"""The packed forest holds every sequence exactly, shares all that can be shared, and stays in its bounds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loreloop.engine.training.packing import LONG_BATCH, PackItem, pack, split_batches

sequence = st.lists(st.integers(0, 2), min_size=1, max_size=12)
forest = st.lists(st.tuples(st.integers(0, 2), sequence), min_size=1, max_size=12)


def items_of(sequences):
    return [PackItem(i, adapter, np.array(tokens, np.int64)) for i, (adapter, tokens) in enumerate(sequences)]


def n_distinct_prefixes(sequences):
    return len({(adapter, *tokens[: n + 1]) for adapter, tokens in sequences for n in range(len(tokens))})


@given(forest)
def test_rows_spell_every_sequence_in_its_positions(sequences):
    packed = pack(items_of(sequences))
    for (_, tokens), rows in zip(sequences, packed.rows, strict=True):
        assert packed.tokens_T[rows].tolist() == list(tokens)
        assert packed.positions_T[rows].tolist() == list(range(len(tokens)))


@given(forest)
def test_every_distinct_prefix_has_one_row(sequences):
    assert len(pack(items_of(sequences)).tokens_T) == n_distinct_prefixes(sequences)


@given(forest)
def test_segments_tile_the_rows_and_continue_their_parents(sequences):
    packed = pack(items_of(sequences))
    stop = 0
    for number, segment in enumerate(packed.segments):
        assert segment.start == stop < segment.stop
        assert segment.parent < number
        parent = packed.segments[segment.parent] if segment.parent >= 0 else None
        assert packed.positions_T[segment.start] == (packed.positions_T[parent.stop - 1] + 1 if parent else 0)
        stop = segment.stop
    assert stop == len(packed.tokens_T)


@given(forest)
def test_adapters_stand_apart_in_ascending_order(sequences):
    packed = pack(items_of(sequences))
    assert list(packed.adapter_rows) == sorted({adapter for adapter, _ in sequences})
    assert [row for span in packed.adapter_rows.values() for row in span] == list(range(len(packed.tokens_T)))
    for (adapter, _), rows in zip(sequences, packed.rows, strict=True):
        assert set(rows.tolist()) <= set(packed.adapter_rows[adapter])


@given(forest, st.integers(1, 40), st.integers(0, 80))
def test_batches_hold_everything_once_within_the_bound(sequences, max_rows, n_more):
    batches = split_batches(items_of(sequences), max_rows, max_rows + n_more)
    assert sorted(item.index for batch in batches for item in batch) == list(range(len(sequences)))
    sizes = [len(pack(batch).tokens_T) for batch in batches]
    bound = max(LONG_BATCH * max_rows, max_rows + n_more)
    assert all(n <= bound or len(batch) == 1 for n, batch in zip(sizes, batches, strict=True))


@given(sequence, st.lists(sequence, min_size=2, max_size=12), st.integers(1, 40))
def test_batches_grow_over_their_bound_only_where_that_is_cheaper(prompt, answers, max_rows):
    def cost(n_rows):
        """Of a forward and backward pass, in rows; over the bound the forward pass is made twice."""
        return n_rows if n_rows <= max_rows else 1.5 * n_rows

    for batch in split_batches(items_of([(0, [*prompt, 3, *answer]) for answer in answers]), max_rows, max_rows):
        assert cost(len(pack(batch).tokens_T)) <= sum(cost(len(item.tokens)) for item in batch)


def test_a_long_prompt_is_computed_once_for_its_group():
    prompt = list(range(100, 160))
    group = items_of([(0, [*prompt, i, 1, 2, 3]) for i in range(16)])
    assert len(split_batches(group, max_rows=50, kept_rows=50)) == 1
    short = items_of([(0, [*prompt[:10], i, *range(30)]) for i in range(8)])
    assert [len(batch) for batch in split_batches(short, max_rows=50, kept_rows=50)] == [1] * 8


def test_kept_activations_are_spent_on_what_is_shared():
    group = items_of([(0, [*range(100, 160), i, 1, 2, 3]) for i in range(16)])
    assert len(split_batches(group, max_rows=50, kept_rows=200)) == 1
    strangers = items_of([(0, [*range(100, 110), i, *range(30)]) for i in range(8)])
    assert [len(batch) for batch in split_batches(strangers, max_rows=50, kept_rows=400)] == [1] * 8


def test_a_sequence_that_ends_inside_another_does_not_cut_it():
    packed = pack(items_of([(0, [1, 2, 3, 4]), (0, [1, 2]), (0, [1, 2, 3])]))
    assert [(s.start, s.stop, s.parent) for s in packed.segments] == [(0, 4, -1)]
    assert [rows.tolist() for rows in packed.rows] == [[0, 1, 2, 3], [0, 1], [0, 1, 2]]


@given(forest, st.integers(1, 40), st.randoms())
def test_batches_do_not_depend_on_the_order_of_arrival(sequences, max_rows, random):
    shuffled = random.sample(sequences, len(sequences))
    spelled = [
        [
            [(item.adapter, item.tokens.tolist()) for item in batch]
            for batch in split_batches(items_of(s), max_rows, max_rows)
        ]
        for s in (sequences, shuffled)
    ]
    assert spelled[0] == spelled[1]


@given(st.lists(st.tuples(st.just(0), sequence), min_size=1, max_size=12))
def test_all_that_fits_is_one_batch(sequences):
    n_rows = n_distinct_prefixes(sequences)
    assert len(split_batches(items_of(sequences), n_rows, n_rows)) == 1


def test_the_drawing_of_the_module():
    packed = pack(items_of([(0, [1, 2, 3, 4]), (0, [1, 2, 3, 5, 6]), (0, [1, 2, 7])]))
    assert [(s.start, s.stop, s.parent) for s in packed.segments] == [
        (0, 2, -1),
        (2, 3, 0),
        (3, 4, 1),
        (4, 6, 1),
        (6, 7, 0),
    ]
