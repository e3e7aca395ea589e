"""What is acknowledged is executed once, in order, and ends once, whatever goes wrong: in simulated worlds.

`make simulate` runs more of them.
"""

from pathlib import Path

import pytest

pytest.importorskip("tests.simulation.sqlite_files", exc_type=ImportError)

from tests.simulation.seeds import simulate
from tests.simulation.world import Template, make_template

N_SEEDS, IN_ONE_TEST = 200, 20
FAILED_ONCE = (209, 261, 325, 408, 510)  # seeds that found a bug, beyond those that run anyway


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("template") / "data")


@pytest.mark.parametrize("first", range(0, N_SEEDS, IN_ONE_TEST))
def test_every_promise_is_kept(template: Template, first: int) -> None:
    broken = {seed: problems for seed in range(first, first + IN_ONE_TEST) if (problems := simulate(seed, template)[1])}
    assert broken == {}


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_what_was_broken_once_is_kept(template: Template, seed: int) -> None:
    assert simulate(seed, template)[1] == []


def test_a_seed_has_one_course(template: Template, tmp_path: Path) -> None:
    _, _, first = simulate(3, template)
    _, _, second = simulate(3, template)
    assert first == second
    assert len(first) > 5
