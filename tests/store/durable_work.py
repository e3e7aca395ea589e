"""Run by tests in a process of its own: opens a store, appends operations one after the other, notes each that is
acknowledged. `python -m tests.store.durable_work FOLDER LOG DURABILITY`."""

import os
import sys
from pathlib import Path

from loreloop.store import journal
from loreloop.store.rows import Acceptance
from loreloop.store.store import Store
from tests.scheduler.ops import step
from tests.store.place import Place

N_OPS = 6


def note(log: str, line: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def main(folder: str, log: str, durability: str) -> None:
    store = Store(Path(folder), "power" if durability == "power" else "os")
    (run,) = store.read(lambda connection: connection.exec_driver_sql("SELECT id FROM runs").scalars().all())
    note(log, "opened")
    for number in range(1, N_OPS + 1):
        store.write_and_wait(journal.append, store.segments, step(run, number), Acceptance("fake", str(number)))
        note(log, f"acknowledged {number}")
    os._exit(0)


def prepared(folder: Path) -> None:
    place = Place(folder)
    place.run()
    place.store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
