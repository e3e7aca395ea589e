"""A process that gives feedback until it is killed: `python -m tests.store.marking FOLDER FIRST_NUMBER`. It prints what
the store has acknowledged."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from loreloop.store import feedback
from loreloop.store.feedback import Asked
from loreloop.store.store import Store
from tests.store.test_statements import said

N_WRITERS = 8


async def run(folder: Path, first: int) -> None:
    store = Store(folder, "os")
    # The kill is timed from the first line on, so one of each is there however slow the machine.
    await store.write(feedback.give, Asked(said(f"id-{first + N_WRITERS}", who=str(first + N_WRITERS)), chosen=True))
    await store.write(feedback.retract, f"id-{first + N_WRITERS}")
    print(f"given {first + N_WRITERS}\nretracted {first + N_WRITERS}", flush=True)

    async def write(number: int) -> None:
        while True:
            await store.write(
                feedback.give, Asked(said(f"id-{number}", who=str(number), target_id=str(number)), chosen=True)
            )
            print("given", number, flush=True)
            if number % 3 == 0:
                await store.write(feedback.retract, f"id-{number}")
                print("retracted", number, flush=True)
            number += N_WRITERS

    await asyncio.gather(*(write(first + 2 * N_WRITERS + each) for each in range(N_WRITERS)))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
