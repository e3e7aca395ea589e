"""1F1B: what each stage does when, and which layers it has."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.formats.configuration import read_spec
from loreloop.parallel.pipeline_cut import head_cost, layer_cost, stage_layers
from loreloop.parallel.timetable import Timetable
from tests.tiny import make_tiny_model

TABLES = st.builds(
    Timetable,
    units=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple),
    n_batches=st.integers(0, 9),
    backward=st.booleans(),
)


@given(TABLES)
def test_everything_is_done_once_and_after_what_it_needs(table: Timetable) -> None:
    stops = {(s, slot.batch, slot.backward): slot.stop for s, slots in enumerate(table.slots) for slot in slots}
    n_ways = 2 if table.backward else 1
    assert len(stops) == len(table.units) * table.n_batches * n_ways == sum(map(len, table.slots))
    for stage, slots in enumerate(table.slots):
        now = in_flight = 0
        for slot in slots:
            assert slot.start >= now, "a stage does one thing at a time"
            giver = stage + 1 if slot.backward else stage - 1
            assert slot.start >= stops.get((giver, slot.batch, slot.backward), 0)
            if slot.backward:
                assert slot.start >= stops[stage, slot.batch, False]
            now, in_flight = slot.stop, in_flight + (-1 if slot.backward else 1)
            if table.backward:
                assert in_flight <= len(table.units) - stage, "activations are kept of no more than that"
        batches = [slot.batch for slot in slots if slot.backward]
        assert batches == sorted(batches), "gradients are added up in the order of one process"


@given(TABLES, st.integers(0, 60))
def test_whatever_was_sent_is_taken_or_known_to_be_left(table: Timetable, now: int) -> None:
    for stage, slots in enumerate(table.slots):
        left = table.unreceived(stage, now)
        for back, batches in ((False, left.forward), (True, left.backward)):
            giver = stage + 1 if back else stage - 1
            if not 0 <= giver < len(table.slots):
                assert not batches
                continue
            sent = [slot.batch for slot in table.slots[giver] if slot.backward == back and slot.stop <= now]
            taken = [slot.batch for slot in slots if slot.backward == back and slot.start < now]
            assert sorted([*taken, *batches]) == sorted(sent)


def test_even_stages_stand_idle_for_one_turn_less_than_there_are_stages() -> None:
    table = Timetable((4, 4, 4), 6, backward=True)
    assert table.end == (6 + 3 - 1) * 3 * 4


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3", "glm4_moe"])
@pytest.mark.parametrize("n_stages", [1, 2, 3, 7])
def test_the_costliest_stage_costs_as_little_as_can_be(family: str, n_stages: int, tmp_path: Path) -> None:
    spec = read_spec(make_tiny_model(tmp_path / "model", family, num_hidden_layers=7))
    costs = [layer_cost(spec, layer) for layer in range(7)]
    costs[-1] += head_cost(spec)
    stages = stage_layers(spec, n_stages)
    assert [layer for stage in stages for layer in stage] == [*range(7)]
    assert all(len(stage) for stage in stages)

    def least(first: int, n: int) -> int:
        if n == 1:
            return sum(costs[first:])
        return min(max(sum(costs[first:stop]), least(stop, n - 1)) for stop in range(first + 1, 7 - n + 2))

    assert max(sum(costs[layer] for layer in stage) for stage in stages) == least(0, n_stages)
