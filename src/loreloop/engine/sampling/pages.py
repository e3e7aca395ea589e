"""Pages of KV cache: who holds which, counted.

A page keeps the keys and values of `page_tokens` positions in every layer. Several samples and the prefix tree may
hold one page; it is free when nobody does. Knows numbers only; the tensors lie in `paged_attention.py`.
"""

from __future__ import annotations


class PagePool:
    """`n_pages` pages with reference counts."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        # The first pages are taken first, so that a cache that is hardly used touches little memory.
        self.free = list(reversed(range(n_pages)))
        self.holders = [0] * n_pages

    @property
    def n_free(self) -> int:
        """How many pages nobody holds."""
        return len(self.free)

    def take(self) -> int:
        """A free page, held once."""
        page = self.free.pop()
        self.holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more holder of a page that is held already."""
        # A free page may have been given to somebody else by now, so to hold it is an error that must show at once.
        assert self.holders[page] > 0, page
        self.holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less; the page is free with the last one."""
        assert self.holders[page] > 0, page
        self.holders[page] -= 1
        if self.holders[page] == 0:
            self.free.append(page)
