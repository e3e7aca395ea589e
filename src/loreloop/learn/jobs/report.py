"""What a job that runs tells of itself: its steps, where it can go on, and what it has made."""

from __future__ import annotations

import asyncio
import threading

import msgspec

from loreloop.learn.clients import POLICY
from loreloop.learn.jobs.worker import Send
from loreloop.learn.runner import Checkpoint, Position, StepRecord
from loreloop.protocol.errors import ServerError
from loreloop.protocol.jobs import Assignment, Began, Kept, Level, Made, ResumePoint, Said, Stepped

NOTED_SECONDS = 120.0  # the HTTP process writes within milliseconds, or is gone


class Report:
    """Of one job; keeps a runner's position as its `Progress`."""

    def __init__(self, assignment: Assignment, send: Send, noted: threading.Event) -> None:
        self.job_id, self.resume, self.send, self.noted = assignment.job_id, assignment.resume, send, noted
        self.trained_tokens = self.resume.trained_tokens if self.resume else 0
        self.made_until = self.resume.step if self.resume else 0
        self.n_steps = 0

    def begin(self, n_steps: int, session_id: str) -> None:
        """So many steps lie before the job."""
        self.n_steps = n_steps
        self.send(Began(self.job_id, n_steps, session_id))

    def say(self, level: Level, message: str) -> None:
        """Tells whoever follows the job."""
        self.send(Said(self.job_id, level, message))

    def step(self, record: StepRecord) -> None:
        """Tells a step with what it has measured."""
        self.trained_tokens += record.tokens
        self.send(
            Stepped(
                job_id=self.job_id,
                step=record.step,
                metrics={**record.metrics, "learning_rate": record.learning_rate},
                trained_tokens=self.trained_tokens,
                n_steps=self.n_steps,
            )
        )

    async def load(self) -> Position | None:
        """Where an earlier worker got to with the job."""
        return msgspec.convert(self.resume.position, Position) if self.resume else None

    async def save(self, position: Position) -> None:
        """Tells what was made and where the job can go on from; returns when both are written down."""
        for checkpoint in position.checkpoints:
            # A job may end at a step of which there is a checkpoint; its model is another one with the same weights.
            is_final = position.finished and checkpoint is position.checkpoints[-1]
            if checkpoint.step > self.made_until or is_final:
                self._made(checkpoint, position, is_final=is_final)
        self.noted.clear()
        point = ResumePoint(
            step=position.step,
            states=position.states,
            trained_tokens=self.trained_tokens,
            position=msgspec.to_builtins(position),
        )
        self.send(Kept(self.job_id, point))
        # The states before this one are deleted next, and must not be while the store still names them.
        if not await asyncio.to_thread(self.noted.wait, NOTED_SECONDS):
            raise ServerError(f"The server has not noted where {self.job_id} stands within {NOTED_SECONDS:g} s.")

    def _made(self, made: Checkpoint, position: Position, *, is_final: bool) -> None:
        self.made_until = made.step
        self.send(
            Made(
                job_id=self.job_id,
                step=made.step,
                path=made.path,
                state_path=position.states.get(POLICY) if is_final else None,
                metrics=made.metrics,
                is_final=is_final,
            )
        )
