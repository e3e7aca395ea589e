"""A process of a simulated world: a thread that runs only while it has the turn, so that one thing happens at a time.

It sleeps by the world's time. A process that is killed ends at the place where it is, and leaves on the disk what lies
there: whatever its handlers would tidy up is out of their reach meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.simulation.disk import Disk, Killed, Process
from tests.simulation.timeline import Timeline


class ThreadProcess(Process):
    """`main` is what it runs, `ended` is called in the world once it has ended, with the error where it has one."""

    def __init__(
        self,
        timeline: Timeline,
        disk: Disk,
        name: str,
        main: Callable[[], None],
        ended: Callable[[BaseException | None], None],
    ) -> None:
        super().__init__(name)
        self.timeline, self.disk, self.main, self.told_end = timeline, disk, main, ended
        self.its_turn, self.turn_back = threading.Semaphore(0), threading.Semaphore(0)
        self.is_over = False
        self.error: BaseException | None = None
        disk.new_process(self)
        self.waits = False  # for a message, and not for a moment
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def resume(self) -> None:
        """Gives it the turn until it sleeps, waits or ends; in the world."""
        if self.is_over:
            return
        before, self.disk.running = self.disk.running, self
        self.its_turn.release()
        self.turn_back.acquire()
        self.disk.running = before
        if self.is_over:
            self.thread.join()
            self.disk.reach_again()
            self.told_end(self.error)

    def kill(self) -> None:
        """Ends it where it is."""
        if not self.is_over:
            self.is_dead = True
            self.disk.take_out_of_reach()
            self.resume()

    def wake(self) -> None:
        """Something has come for which it may wait."""
        if self.waits:
            self.waits = False
            self.timeline.after(0.0, self.resume)

    # in the process

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.timeline.after(seconds, self.resume)
        self._give_turn_back()

    def wait(self) -> None:
        """Until somebody calls `wake`."""
        self.waits = True
        self._give_turn_back()

    def _give_turn_back(self) -> None:
        if self.is_dead:
            raise Killed
        self.turn_back.release()
        self.its_turn.acquire()
        if self.is_dead:
            raise Killed

    def _run(self) -> None:
        self.its_turn.acquire()
        try:
            if not self.is_dead:
                self.main()
        except BaseException as error:  # told to the world, which tells a kill from a bug
            self.error = error
        self.is_over = True
        self.turn_back.release()
