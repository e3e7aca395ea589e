"""`python -m bench.jobs_sums`: two-digit sums by a job with a `python` grader, through OpenAI's client alone.

Writes bench/results/jobs-sums.json: held-out sums before and after, and the seconds in between. To be run on an idle
machine; the numbers of steps make it shorter.
"""

from __future__ import annotations

import argparse
import json
import re
import time

import openai

from bench.learn_rig import Curriculum, held_out
from bench.record import RESULTS, line, write_record
from bench.rig import MODEL, Figure
from bench.rows.serve import server
from loreloop.learn.examples import Task

GRADER = """
import re

def grade(sample, item):
    numbers = re.findall(r"\\d+", sample["output_text"])
    return float(bool(numbers) and numbers[-1] == item["answer"])
"""
ANSWER_TOKENS = 12  # enough for "23 + 45 = 68"
POLL_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-steps", type=int, default=16)
    parser.add_argument("--two-steps", type=int, default=54)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--review", type=int, default=6)
    parser.add_argument("--multiplier", type=float, default=2.3, help="of the automatic rate")
    parser.add_argument("--exam", type=int, default=200, help="held-out sums of each exam")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with server() as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, timeout=600)
        exam = held_out(options.exam)
        before = share_right(client, MODEL, exam)
        started = time.monotonic()
        job = learned(client, options)
        seconds = time.monotonic() - started
        after = share_right(client, job.fine_tuned_model or "", exam)
    figures = [
        Figure("held-out two-digit sums, before", before, "share", at_most=0.10),
        Figure("held-out two-digit sums, after", after, "share", at_least=0.85),
        Figure("seconds of the job", seconds, "s", at_most=900),
    ]
    write_record(RESULTS, "jobs-sums", __doc__ or "", figures, options=vars(options))
    for figure in figures:
        print(line("jobs-sums", figure), flush=True)


def learned(client: openai.OpenAI, options: argparse.Namespace) -> openai.types.fine_tuning.FineTuningJob:
    curriculum = Curriculum(options.one_steps, options.two_steps, options.batch, options.review)
    tasks = "\n".join(json.dumps(line_of(task)) for task in curriculum.tasks(options.seed))
    file = client.files.create(file=("sums.jsonl", tasks.encode()), purpose="fine-tune")
    method = {
        "type": "reinforcement",
        "reinforcement": {
            "grader": {"type": "python", "name": "sum", "source": GRADER},
            "hyperparameters": {
                "n_epochs": 1,
                "batch_size": options.batch,
                "learning_rate_multiplier": options.multiplier,
                "max_completion_tokens": ANSWER_TOKENS,
            },
        },
    }
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        method=method,  # type: ignore[arg-type]
        seed=options.seed,
    )
    told = ""
    while job.status in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        job = client.fine_tuning.jobs.retrieve(job.id)
        newest = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0].message
        if newest != told:
            print(newest, flush=True)
            told = newest
    assert job.status == "succeeded", job.error
    return job


def line_of(task: Task) -> dict[str, object]:
    """A task as a line of a file."""
    return {"messages": [{"role": "user", "content": task.prompt.turns[0].content}], **task.item}


def share_right(client: openai.OpenAI, model: str, exam: list[Task]) -> float:
    """Of the likeliest answers."""
    right = 0
    for task in exam:
        answer = client.chat.completions.create(
            model=model,
            messages=line_of(task)["messages"],  # type: ignore[arg-type]
            max_tokens=ANSWER_TOKENS,
            temperature=0,
        )
        numbers = re.findall(r"\d+", answer.choices[0].message.content or "")
        right += bool(numbers) and numbers[-1] == task.item["answer"]
    return right / len(exam)


if __name__ == "__main__":
    main()
