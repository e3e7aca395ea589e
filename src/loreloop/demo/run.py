"""The demo from beginning to end: exam, chats, exam, sums, exam.

Takes the address of a running server and talks to it like any client. Stops nothing and starts nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import tinker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loreloop.demo import ask, grpo, questions, report, supervised

CHAT_STEPS = 5
CHAT_BATCH = 8
ONE_DIGIT = grpo.GrpoPlan(steps=16, groups=16, group_size=8, learning_rate=4e-4, final_rate_share=0.5)
TWO_DIGIT = grpo.GrpoPlan(
    steps=54, groups=20, group_size=8, learning_rate=2.5e-4, final_rate_share=0.05, review_groups=7
)
EXAM_TWO_DIGIT = 200  # held-out questions of each exam
WATCHED_STEPS = 10  # last steps after each of which held-out questions are asked
WATCHED_QUESTIONS = 100


class Demo:
    """One run against one server, with its record. `tokenizer` is the model's."""

    def __init__(self, base_url: str, api_key: str, model: str, tokenizer: Any, console: Console) -> None:
        self.base_url, self.api_key, self.model, self.console = base_url, api_key, model, console
        self.tokenizer = tokenizer
        self.one, self.two = questions.one_digit(seed=1), questions.two_digit(seed=1)
        self.record = report.Record()

    def run(self, folder: Path) -> report.Record:
        """The whole demo; writes table, picture and numbers into `folder` and gives the record."""
        # The clock starts before the first exam, so the time told covers all questions.
        started = time.monotonic()
        self.examine("before", self.model)
        service = tinker.ServiceClient(base_url=self.base_url, api_key=self.api_key)
        with service:
            # The seed makes two runs of the demo alike, as far as the server's sampling is.
            client = service.create_lora_training_client(self.model, rank=32, seed=1, train_unembed=False).result()
            self.chat(client)
            self.examine("after (a) chats", self.saved(client, "chats"))
            self.sums(client)
            self.examine("after (b) sums", self.saved(client, "sums"))
        self.record.seconds = time.monotonic() - started
        report.show(self.record, self.console)
        self.console.print(f"The reward curve is in {report.save(self.record, folder)}")
        return self.record

    def saved(self, client: tinker.TrainingClient, name: str) -> str:
        """Saves the weights under a name and gives their `tinker://` path."""
        return client.save_weights_for_sampler(name).result().path

    def examine(self, when: str, model: str) -> None:
        """Asks the held-out questions and records the shares of right answers."""
        with self.console.status(f"held-out questions, {when}"):
            one = ask.share_right(self.base_url, self.api_key, model, self.one.held_out)
            two = ask.share_right(self.base_url, self.api_key, model, self.two.held_out[:EXAM_TWO_DIGIT])
        self.record.exams.append(report.Exam(when, one, two))
        self.console.print(f"  {when:<16} one-digit {one:.2f}   two-digit {two:.2f}")

    def chat(self, client: tinker.TrainingClient) -> None:
        """Stage (a): some supervised steps over chats, with the losses recorded."""
        with self.progress() as progress:
            bar = progress.add_task("(a) chats", total=CHAT_STEPS, figure="")
            self.record.losses += supervised.train(
                client,
                self.tokenizer,
                CHAT_STEPS,
                CHAT_BATCH,
                lambda loss: progress.update(bar, advance=1, figure=f"loss {loss:.2f}"),
            )

    def sums(self, client: tinker.TrainingClient) -> None:
        """Stage (b): rewards for sums of one digit, then of two, with the rewards recorded."""
        with self.progress() as progress:
            for name, split, plan, rewards, review in (
                ("(b) one digit", self.one, ONE_DIGIT, self.record.one_digit_rewards, ()),
                ("(b) two digits", self.two, TWO_DIGIT, self.record.two_digit_rewards, self.one.train),
            ):
                bar = progress.add_task(name, total=plan.steps, figure="")

                def after_step(
                    step: int,
                    reward: float,
                    sampler: tinker.SamplingClient,
                    # The values of this round are bound as defaults; a closure would see those of the last one.
                    *,
                    plan: grpo.GrpoPlan = plan,
                    rewards: list[float] = rewards,
                    bar: object = bar,
                    name: str = name,
                ) -> None:
                    rewards.append(reward)
                    progress.update(bar, advance=1, figure=f"reward {reward:.2f}")  # type: ignore[arg-type]
                    if not self.console.is_terminal:  # bars do not show in a log
                        self.console.print(f"  {name} step {step + 1}/{plan.steps} reward {reward:.2f}")
                    if plan is TWO_DIGIT and step >= plan.steps - WATCHED_STEPS:
                        self.watch(client, step)

                grpo.train(client, self.tokenizer, split.train, plan, after_step, review)

    def watch(self, client: tinker.TrainingClient, step: int) -> None:
        """Asks some of the exam's two-digit questions of the weights just made."""
        # These checkpoints are of interest for the moment only, so they expire.
        path = client.save_weights_for_sampler(f"step-{step:03d}", ttl_seconds=3600).result().path
        share = ask.share_right(self.base_url, self.api_key, path, self.two.held_out[:WATCHED_QUESTIONS])
        self.record.held_out.append(share)

    def progress(self) -> Progress:
        """A progress bar with room for a figure behind it."""
        columns = (TextColumn("{task.description:<15}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, TextColumn("{task.fields[figure]}"), console=self.console)
