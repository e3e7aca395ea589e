"""Whether a pool of pages is whole, whatever was done to it."""

from loreloop.engine.sampling.pages import PagePool


def check_pages(pool: PagePool) -> None:
    """Every page is held or free, and none twice."""
    held = {page for page, count in enumerate(pool.holders) if count}
    assert len(set(pool.free)) == len(pool.free)
    assert held | set(pool.free) == set(range(pool.n_pages))
    assert not held & set(pool.free)
