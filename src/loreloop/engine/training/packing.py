"""Lays sequences end to end, equal prefixes once: what a training micro-batch computes.

Pure: token ids in, row numbers out; no tensors library, no model. Sequences of different adapters share nothing.
A segment is a run of rows; its parent holds the tokens before it:

    sequences  a b c d | a b c e f | a b x        rows  0 1 2 3 4 5 6
    segments   [a b] → [c] → [d], [e f]                 a b c d e f x
                    → [x]

Legend: T rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
LONG_BATCH = 8  # the largest micro-batch of sequences that share, in ordinary ones; bounds its memory


@dataclass(frozen=True)
class Segment:
    """Rows start…stop hold consecutive tokens; `parent` is an index into the segments, -1 for none."""

    start: int
    stop: int
    parent: int


@dataclass(frozen=True)
class Packed:
    """`rows[i]` are the rows of sequence i, one per token; `adapter_rows[a]` those of all of adapter a's."""

    tokens_T: Ids
    positions_T: Ids
    segments: tuple[Segment, ...]
    rows: tuple[Ids, ...]
    adapter_rows: dict[int, range]


@dataclass(frozen=True)
class PackItem:
    """One sequence: its number for the caller, its adapter's number, its token ids."""

    index: int
    adapter: int
    tokens: Ids


def split_batches(items: Sequence[PackItem], max_rows: int, kept_rows: int) -> list[list[PackItem]]:
    """Micro-batches of at most `max_rows` packed rows, neighbours in prefix order.

    Two kinds grow larger: a single longer sequence, and sequences whose common beginning would cost more if it were
    repeated in another micro-batch. Beyond `kept_rows` activations are computed twice.
    """
    # Compared as bytes, sequences with common beginnings become neighbours; that is far faster than comparing tuples.
    ordered = sorted(items, key=lambda item: (item.adapter, item.tokens.astype(">i8").tobytes()))
    batches: list[list[PackItem]] = []
    n_rows = 0
    for item in ordered:
        # The last one suffices: in prefix order no other sequence of the batch shares more with this one.
        n_shared = common_prefix(batches[-1][-1], item) if batches else 0
        n_new = len(item.tokens) - n_shared
        # A new batch must compute the shared beginning again, which is what `_joins` weighs.
        if not batches or not _joins(n_rows, n_new, n_shared, max_rows, kept_rows):
            batches.append([])
            n_rows, n_new = 0, len(item.tokens)
        batches[-1].append(item)
        n_rows += n_new
    return batches


def _joins(n_rows: int, n_new: int, n_shared: int, max_rows: int, kept_rows: int) -> bool:
    """Whether a sequence is cheaper in this micro-batch than in a new one.

    Up to `kept_rows` it takes memory alone, which saving a third of the sequence is worth. Computing activations again
    costs half a row's forward and backward pass: for every row that is added, and for all those before when the bound
    is crossed.
    """
    if n_rows + n_new <= kept_rows:
        return n_rows + n_new <= max_rows or n_new <= 2 * n_shared
    # Whoever crosses the bound makes all earlier rows of the batch be computed twice as well.
    n_again = n_new if n_rows > kept_rows else n_rows + n_new
    return n_again <= 2 * n_shared and n_rows + n_new <= LONG_BATCH * max_rows


def common_prefix(a: PackItem, b: PackItem) -> int:
    """How many first tokens two sequences share; none across adapters."""
    return _shared(a.tokens, b.tokens) if a.adapter == b.adapter else 0


def _shared(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    # The whole comparison at once; a loop over tokens in Python would take longer than the model's own work on them.
    unequal = np.flatnonzero(a[:n] != b[:n])
    return int(unequal[0]) if len(unequal) else n


@dataclass
class _Node:
    """A run of tokens in the trie under construction."""

    tokens: Ids
    children: dict[int, _Node] = field(default_factory=dict)

    def join_single(self) -> None:
        """Takes in a child that has no siblings: nothing branches between the two."""
        # A loop, since taking in a child may again leave a single one.
        while len(self.children) == 1:
            (child,) = self.children.values()
            self.tokens, self.children = np.concatenate((self.tokens, child.tokens)), child.children

    def split(self, length: int) -> None:
        # The node itself stays the upper part, because its parent refers to it.
        tail = _Node(self.tokens[length:], self.children)
        self.tokens, self.children = self.tokens[:length], {int(tail.tokens[0]): tail}


def _insert(root: _Node, tokens: Ids) -> None:
    node, rest = root, tokens
    while len(rest):
        # Children differ in their first token, so it alone decides which one may match.
        child = node.children.get(int(rest[0]))
        if child is None:
            node.children[int(rest[0])] = _Node(rest)
            return
        n = _shared(child.tokens, rest)
        if n < len(child.tokens):
            child.split(n)
        node, rest = child, rest[n:]


def _join_singles(root: _Node) -> None:
    """A sequence that merely ends inside another one does not cut it."""
    # Without recursion: a tree over long data may be deeper than Python's stack.
    waiting = list(root.children.values())
    while waiting:
        node = waiting.pop()
        node.join_single()
        waiting += node.children.values()


def _walk(root: _Node) -> Iterator[tuple[_Node, int, int]]:
    """Nodes with tokens, parents first: (node, number of its parent, tokens before it)."""
    # Depth first, so that descendants follow their ancestor without a gap; the backward pass relies on it. Reversed,
    # since a stack gives back the last first.
    stack: list[tuple[_Node, int, int]] = [(child, -1, 0) for child in reversed(root.children.values())]
    number = 0
    while stack:
        node, parent, depth = stack.pop()
        yield node, parent, depth
        stack += [(child, number, depth + len(node.tokens)) for child in reversed(node.children.values())]
        number += 1


class _Builder:
    """Collects segments, tokens and positions as tries are walked."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.tokens: list[Ids] = []
        self.positions: list[Ids] = []
        self.n_rows = 0

    def add(self, items: Sequence[PackItem]) -> dict[int, Ids]:
        """Lays out the sequences of one adapter; gives each one's rows by its index."""
        # Every adapter has a trie of its own, for its sequences' hidden states differ from the first layer on.
        root = _Node(np.empty(0, np.int64))
        for item in items:
            _insert(root, item.tokens)
        _join_singles(root)
        first_segment = len(self.segments)
        starts: dict[int, int] = {}
        for node, parent, depth in _walk(root):
            # By identity: nodes are mutable and hold arrays, so they cannot be keys themselves.
            starts[id(node)] = self.n_rows
            stop = self.n_rows + len(node.tokens)
            self.segments.append(Segment(self.n_rows, stop, parent + first_segment if parent >= 0 else -1))
            self.tokens.append(node.tokens)
            self.positions.append(np.arange(depth, depth + len(node.tokens)))
            self.n_rows = stop
        return {item.index: _rows_of(root, item.tokens, starts) for item in items}


def pack(items: Sequence[PackItem]) -> Packed:
    """One micro-batch in rows. `rows` follow the order of `items`; adapters stand in ascending order."""
    builder = _Builder()
    rows: dict[int, Ids] = {}
    adapter_rows: dict[int, range] = {}
    # In ascending order whatever the order of items, so that an equal batch is packed equally in a replay.
    for adapter in sorted({item.adapter for item in items}):
        first = builder.n_rows
        rows |= builder.add([item for item in items if item.adapter == adapter])
        adapter_rows[adapter] = range(first, builder.n_rows)
    return Packed(
        np.concatenate(builder.tokens),
        np.concatenate(builder.positions),
        tuple(builder.segments),
        tuple(rows[item.index] for item in items),
        adapter_rows,
    )


def _rows_of(root: _Node, tokens: Ids, starts: dict[int, int]) -> Ids:
    parts: list[Ids] = []
    node, rest = root, tokens
    while len(rest):
        node = node.children[int(rest[0])]
        # A sequence may end inside a node, since nodes without branches were joined.
        n = min(len(rest), len(node.tokens))
        parts.append(np.arange(starts[id(node)], starts[id(node)] + n))
        rest = rest[n:]
    return np.concatenate(parts)
