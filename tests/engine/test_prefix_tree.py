"""The prefix tree finds what was computed before, and gives back every page it was lent."""

from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.engine.sampling.pages import PagePool
from loreloop.engine.sampling.prefix_tree import PrefixTree
from tests.engine.page_rig import check_pages

PAGE = 4
PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14).map(tuple), min_size=1, max_size=8)


def new_tree(n_pages=64):
    return PrefixTree(PagePool(n_pages), PAGE)


def add(tree, tokens, namespace="base"):
    """What a sample does: takes pages, makes them known, lets go."""
    pages = [tree.pool.take() for _ in range(0, len(tokens), PAGE)]
    tree.insert(namespace, tuple(tokens), pages)
    for page in pages:
        tree.pool.release(page)
    return pages


def n_known(tree, tokens, namespace="base"):
    match = tree.match(namespace, tuple(tokens))
    return len(match.pages) * PAGE + match.n_copied


def shared(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_whole_pages_are_shared_and_the_rest_can_be_copied():
    tree = new_tree()
    pages = add(tree, range(10))
    match = tree.match("base", (0, 1, 2, 3, 4, 5, 99))
    assert match.pages == (pages[0],)
    assert (match.source, match.n_copied) == (pages[1], 2)


def test_a_partly_filled_page_is_copied_only_as_far_as_it_is_filled():
    tree = new_tree()
    pages = add(tree, range(6))
    match = tree.match("base", tuple(range(12)))
    assert (match.pages, match.source, match.n_copied) == ((pages[0],), pages[1], 2)


def test_namespaces_share_nothing():
    tree = new_tree()
    add(tree, range(8), "revision")
    assert n_known(tree, range(8)) == 0
    assert n_known(tree, range(8), "revision") == 8


@settings(deadline=None)
@given(PROMPTS, st.lists(st.integers(0, 1), max_size=14).map(tuple))
def test_the_longest_known_prefix_is_found(prompts, question):
    tree = new_tree()
    for prompt in prompts:
        add(tree, prompt)
    best = max(shared(prompt, question) for prompt in prompts)
    assert n_known(tree, question) == best


@settings(deadline=None)
@given(PROMPTS)
def test_a_prefix_known_already_takes_no_second_page(prompts):
    tree = new_tree()
    for prompt in prompts:
        add(tree, prompt)
    n_free = tree.pool.n_free
    for prompt in prompts:
        add(tree, prompt)
    assert tree.pool.n_free == n_free


@settings(deadline=None)
@given(PROMPTS)
def test_eviction_and_dropping_leave_no_page_behind(prompts):
    for empty in (lambda tree: tree.evict(64), lambda tree: tree.drop("base")):
        tree = new_tree()
        for prompt in prompts:
            add(tree, prompt)
        empty(tree)
        assert tree.pool.n_free == 64
        check_pages(tree.pool)


@settings(deadline=None)
@given(PROMPTS, st.data())
def test_a_page_that_grows_after_it_became_known_can_be_evicted(prompts, data):
    tree = new_tree()
    for prompt in prompts:
        pages = [tree.pool.take() for _ in range(0, len(prompt), PAGE)]
        n_first = data.draw(st.integers(1, len(prompt)))
        tree.insert("base", prompt[:n_first], pages)  # the prompt's end
        tree.insert("base", prompt, pages)  # the sample's end
        for page in pages:
            tree.pool.release(page)
    tree.evict(64)
    assert tree.pool.n_free == 64


def test_the_longest_unused_goes_first():
    tree = new_tree(4)
    for start in (0, 100, 200, 300):
        add(tree, range(start, start + PAGE))
    n_known(tree, range(PAGE))  # the oldest has just been used
    tree.evict(2)
    assert [n_known(tree, range(s, s + PAGE)) for s in (0, 100, 200, 300)] == [PAGE, 0, 0, PAGE]


def test_what_a_sample_holds_is_not_evicted():
    tree = new_tree(2)
    (page,) = add(tree, range(PAGE))
    tree.pool.hold(page)
    add(tree, range(50, 50 + PAGE))
    tree.evict(2)
    assert n_known(tree, range(PAGE)) == PAGE
    assert tree.pool.n_free == 1
