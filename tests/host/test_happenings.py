"""What happened lately: kept in order, bounded, and told to those who wait."""

import asyncio
import subprocess
import sys
import time

from loreloop.host.happenings import MOST, Happenings
from loreloop.host.processes import processes_below
from loreloop.protocol.link import Batch, BatchDone, OpEnd
from loreloop.protocol.training import Done, Failure, PassResult, SavedResult, StepResult


def run(scene):
    asyncio.run(scene())


def test_operations_become_lines_with_their_losses_and_replays_none():
    async def scene():
        kept = Happenings()
        ends = (
            OpEnd("s:train:0:0", Done()),
            OpEnd("s:train:0:1", PassResult((), {"loss:sum": 6.0}), 12),
            OpEnd("s:train:0:2", StepResult({"grad:mean": 0.5})),
            OpEnd("s:train:1:3", Failure("user", "The loss is unknown.")),
            OpEnd("s:train:0:4", SavedResult(10)),
        )
        kept.batch_ended(BatchDone(Batch(1, ()), ends))
        kept.batch_ended(BatchDone(Batch(1, ()), ends, replayed=True))
        found = kept.newest(10).happenings
        assert [each.kind for each in found] == ["operation", "pass", "step", "failure", "save"]
        assert "loss 6.0000 over 12 tokens (0.5000 each)" in found[1].text
        assert found[1].figures == {"loss_sum": 6.0, "trained_tokens": 12}
        assert "grad:mean 0.5" in found[2].text
        assert [each.of for each in kept.newest(10, "s:train:1").happenings] == ["s:train:1"]

    run(scene)


def test_numbers_go_on_from_where_a_watcher_is():
    async def scene():
        kept = Happenings()
        kept.note("job", "a", "one")
        first = kept.newest(10)
        kept.note("job", "b", "two")
        assert [each.text for each in kept.after(first.last).happenings] == ["two"]
        assert kept.after(kept.last).happenings == []
        assert kept.newest(0).happenings == []
        assert [each.text for each in kept.after(kept.last + 5).happenings] == ["one", "two"]  # the clock was put back

    run(scene)


def test_the_oldest_go_and_a_watcher_hears_that_some_were_missed():
    async def scene():
        kept = Happenings()
        kept.note("job", "a", "first")
        began = kept.last
        assert not kept.after(began).missed
        for number in range(MOST + 1):
            kept.note("job", "a", str(number))
        lately = kept.after(began)
        assert lately.missed
        assert len(lately.happenings) == MOST

    run(scene)


def test_whoever_waits_is_woken_or_let_go_when_the_time_is_over():
    async def scene():
        kept = Happenings()
        waiting = asyncio.ensure_future(kept.wait(kept.last, 30))
        await asyncio.sleep(0)
        kept.note("job", "a", "now")
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(kept.wait(kept.last, 0.01), 5)
        await asyncio.wait_for(kept.wait(kept.last - 1, 30), 5)  # there is something already

    run(scene)


def test_a_process_and_what_it_starts_are_found():
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        try:
            deadline = time.monotonic() + 30
            while len(found := processes_below(parent.pid)) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert [each.role for each in found if each.pid != parent.pid] == ["sleep"]
            assert all(each.resident_bytes > 0 and each.age_seconds < 60 for each in found)
            child = next(each.pid for each in found if each.role == "sleep")
        finally:
            subprocess.run(["kill", str(child)], check=False)
            parent.kill()
    assert processes_below(parent.pid) == []
