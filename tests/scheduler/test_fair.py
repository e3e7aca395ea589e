"""FairQueue: the fewest running first, then the longest without a turn; nobody starves, nobody is lost."""

from hypothesis import given
from hypothesis import strategies as st

from loreloop.scheduler.fair import FairQueue
from tests.scheduler.ops import sample


def queue(*requests: tuple[str, str]) -> FairQueue:
    filled = FairQueue()
    for request_id, owner in requests:
        filled.add(sample(request_id, owner))
    return filled


def admitted(queue: FairQueue) -> str:
    op = queue.front()
    assert op is not None
    queue.admit(op)
    return op.request_id


def test_one_owner_is_served_in_order() -> None:
    alone = queue(("1", "ann"), ("2", "ann"), ("3", "ann"))
    assert [admitted(alone) for _ in range(3)] == ["1", "2", "3"]
    assert alone.front() is None
    assert (alone.waiting, alone.running) == (0, 3)


def test_two_owners_alternate_however_much_one_has_sent() -> None:
    both = queue(*((f"a{i}", "ann") for i in range(5)), ("b0", "bob"), ("b1", "bob"))
    assert [admitted(both) for _ in range(5)] == ["a0", "b0", "a1", "b1", "a2"]


def test_who_has_fewer_samples_running_comes_first() -> None:
    mixed = FairQueue()
    for op in (sample("a0", "ann", n=16), sample("a1", "ann"), *(sample(f"b{i}", "bob") for i in range(3))):
        mixed.add(op)
    assert [admitted(mixed) for _ in range(4)] == ["a0", "b0", "b1", "b2"]
    mixed.end("a0")
    assert admitted(mixed) == "a1"


def test_the_front_stays_in_front_until_it_is_admitted() -> None:
    patient = queue(("1", "ann"))
    before = patient.front()
    patient.add(sample("2", "ann"))
    assert patient.front() is before


def test_a_waiting_request_can_leave() -> None:
    leaving = queue(("1", "ann"), ("2", "ann"), ("3", "ann"))
    leaving.end("2")
    assert "2" not in leaving
    assert [admitted(leaving), admitted(leaving)] == ["1", "3"]


def test_who_comes_back_at_once_does_not_pass_those_who_wait() -> None:
    one_room = queue(("a0", "ann"), ("b0", "bob"), ("b1", "bob"))
    order = [admitted(one_room)]
    for turn in range(1, 6):  # ann sends her next request as soon as the one before has ended
        one_room.end(order[-1])
        if order[-1].startswith("a"):
            one_room.add(sample(f"a{turn}", "ann"))
        order.append(admitted(one_room))
    assert "b1" in order


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_every_request_is_admitted_once_and_in_its_owners_order(events: list[tuple[str, bool]]) -> None:
    one_room, arrived, order = FairQueue(), list[str](), list[str]()
    for number, (owner, admits) in enumerate(events):
        arrived.append(f"{owner}{number}")
        one_room.add(sample(arrived[-1], owner))
        if admits:
            order.append(admitted(one_room))
            one_room.end(order[-1])
    while one_room.front():
        order.append(admitted(one_room))
        one_room.end(order[-1])
    assert sorted(order) == sorted(arrived)
    assert (one_room.waiting, one_room.running) == (0, 0)
    for owner in "abc":
        assert [r for r in order if r[0] == owner] == [r for r in arrived if r[0] == owner]


@given(st.integers(1, 6), st.dictionaries(st.sampled_from("abcd"), st.integers(1, 12), min_size=1))
def test_rooms_are_shared_evenly_among_those_who_wait(rooms: int, backlog: dict[str, int]) -> None:
    full = queue(*((f"{owner}{i}", owner) for owner, n in backlog.items() for i in range(n)))
    served = [admitted(full)[0] for _ in range(min(rooms, sum(backlog.values())))]
    for owner in backlog:
        others = max(served.count(other) for other in backlog)
        assert served.count(owner) >= min(backlog[owner], others - 1)
