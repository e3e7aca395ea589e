"""Which token prefixes have their keys and values in pages already.

A tree a namespace (the base, or one revision of an adapter), one node a page. A full page is shared as it is; of a
page that agrees only in its first tokens, those can be copied. Least recently used leaves go first.

    namespace ── [t0 … t15] ── [t16 … t31] ── [t32 t33]      a last page may be partly filled
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from loreloop.engine.sampling.pages import PagePool

Tokens = tuple[int, ...]


@dataclass(eq=False)
class _Node:
    tokens: Tokens
    page: int
    parent: _Node | None
    used: int = 0
    children: dict[int, list[_Node]] = field(default_factory=dict)  # by first token


@dataclass(frozen=True)
class Match:
    """`pages` hold whole pages of a prompt; the first `n_copied` tokens of `source` continue it."""

    pages: tuple[int, ...]
    source: int | None
    n_copied: int


class PrefixTree:
    """Holds one reference on each page it knows."""

    def __init__(self, pool: PagePool, page_tokens: int) -> None:
        self.pool, self.page_tokens = pool, page_tokens
        self.roots: dict[str, _Node] = {}
        self.n_nodes = Counter[int]()  # by page: a page may be known at two lengths
        self.clock = 0

    def match(self, namespace: str, tokens: Tokens) -> Match:
        """The longest known prefix of `tokens`. Pages are not held for the caller yet."""
        self.clock += 1
        node = self.roots.get(namespace)
        pages: list[int] = []
        start = 0
        while node is not None:
            best, n_equal = _closest(node, tokens[start : start + self.page_tokens])
            if best is None:
                break
            best.used = self.clock
            if n_equal < self.page_tokens:
                return Match(tuple(pages), best.page, n_equal)
            pages.append(best.page)
            start += self.page_tokens
            node = best
        return Match(tuple(pages), None, 0)

    def insert(self, namespace: str, tokens: Tokens, pages: list[int]) -> None:
        """Makes known that `pages` hold `tokens` (the last page perhaps in part)."""
        self.clock += 1
        node = self.roots.setdefault(namespace, _Node((), -1, None))
        for index, page in enumerate(pages):
            piece = tokens[index * self.page_tokens : (index + 1) * self.page_tokens]
            if not piece:
                return
            best, n_equal = _closest(node, piece)
            if best is not None and best.page == page and n_equal == len(best.tokens):
                best.tokens = piece  # its sample has gone on writing into the page
            elif best is None or n_equal < len(piece):
                best = self._add(node, piece, page)
            best.used = self.clock
            node = best

    def _add(self, parent: _Node, tokens: Tokens, page: int) -> _Node:
        node = _Node(tokens, page, parent)
        self.pool.hold(page)
        self.n_nodes[page] += 1
        parent.children.setdefault(tokens[0], []).append(node)
        return node

    def evict(self, n_pages: int) -> None:
        """Lets go of leaves that no sample holds, oldest first, until `n_pages` are free or none is left."""
        while self.pool.n_free < n_pages:
            # Only leaves: a page is of no use without those before it, as attention needs the whole prefix.
            leaves = [node for node in self._nodes() if not node.children and self._is_idle(node)]
            if not leaves:
                return
            # Removing leaves makes new ones of their parents, which the next round of the outer loop finds.
            for leaf in sorted(leaves, key=lambda node: node.used):
                if self.pool.n_free >= n_pages:
                    return
                self._remove(leaf)

    def _is_idle(self, node: _Node) -> bool:
        # Held by nobody but the tree itself, at however many nodes.
        return self.pool.holders[node.page] == self.n_nodes[node.page]

    def drop(self, namespace: str) -> None:
        """Forgets a namespace."""
        root = self.roots.pop(namespace, None)
        # Samples that still use these pages hold them too, so releasing here takes nothing from them.
        for node in list(_below(root)) if root else []:
            self._release(node.page)

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None
        siblings = node.parent.children[node.tokens[0]]
        siblings.remove(node)
        # Empty lists would gather, one for every token that ever began a page.
        if not siblings:
            del node.parent.children[node.tokens[0]]
        self._release(node.page)

    def _release(self, page: int) -> None:
        self.n_nodes[page] -= 1
        if not self.n_nodes[page]:
            del self.n_nodes[page]
        self.pool.release(page)

    def _nodes(self) -> Iterator[_Node]:
        for root in self.roots.values():
            yield from _below(root)


def _below(node: _Node) -> Iterator[_Node]:
    stack = [child for group in node.children.values() for child in group]
    while stack:
        node = stack.pop()
        yield node
        stack += [child for group in node.children.values() for child in group]


def _closest(node: _Node, tokens: Tokens) -> tuple[_Node | None, int]:
    """The child that shares most first tokens with `tokens`, and how many."""
    best, n_best = None, 0
    # Children are found by their first token: one that differs there shares nothing.
    for child in node.children.get(tokens[0], []) if tokens else []:
        n_equal = 0
        for a, b in zip(child.tokens, tokens, strict=False):
            if a != b:
                break
            n_equal += 1
        if n_equal > n_best:
            best, n_best = child, n_equal
    return best, n_best
