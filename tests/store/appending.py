"""A process that appends and executes operations until it is killed, and says on stdout what was committed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from loreloop.protocol.link import Batch, BatchDone, OpEnd
from loreloop.protocol.training import StepResult
from loreloop.store import journal
from loreloop.store.rows import Acceptance
from loreloop.store.store import Store
from tests.scheduler.ops import forward_backward
from tests.store.place import BASE


async def append_for_ever(folder: Path, run_id: str, first: int) -> None:
    """Several at once, since a kill in the middle of a group is the interesting one."""
    store = Store(folder, "os")
    store.segments.segment_bytes = 2000

    async def one(seq: int) -> None:
        op = forward_backward(run_id, seq)
        await store.write(journal.append, store.segments, op, Acceptance(BASE, repr(op)))
        print(f"accepted {seq}", flush=True)
        ends = (OpEnd(op.request_id, StepResult({"seq:mean": float(seq)})),)
        done = BatchDone(Batch(seq + 1, (op.request_id,)), ends)
        await store.write(journal.record_batch, store.segments, BASE, done, 1.0)
        print(f"executed {seq}", flush=True)

    for start in range(first, first + 100_000, 5):
        await asyncio.gather(*(one(seq) for seq in range(start, start + 5)))


if __name__ == "__main__":
    asyncio.run(append_for_ever(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
