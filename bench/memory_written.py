"""`python -m bench.memory_written FILE --only NAME …`: the baselines in which a model writes, by a running server.

What stands in the end is counted as for the others. Only the beginning of one conversation is used, `--turns` of it,
since a small model on two cores writes for minutes; a row that is not there after `--minutes` is left out and named.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import msgspec

from bench.record import RESULTS, about_the_run
from loreloop.cli.chat import client_of, known_model
from loreloop.cli.memory_answers import MOST_WRITTEN, sampler_of
from loreloop.config import Config
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation import published, study
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import BLIND, Blind
from loreloop.memory.evaluation.recall import turns_kept
from loreloop.memory.evaluation.written import written_by
from loreloop.protocol.errors import Unavailable
from loreloop.text.tokenizer import TextTokenizer

BESIDE = ("memory", "recency window")  # for comparison, on the same turns and questions


def main() -> None:
    asked = arguments()
    folder = ensure(Catalog(asked.data_dir.expanduser()), "smollm2-135m").folder
    count = lru_cache(maxsize=1 << 16)(TextTokenizer(folder).count)
    (whole,) = (one for one in published.load(asked.file, "locomo") if one.name == asked.only)
    conversation = beginning(whole, asked.turns)
    started, about = time.monotonic(), about_the_run()  # of the code that runs, which may change meanwhile on the disk
    deadline = started + 60 * asked.minutes
    with client_of(asked.url, os.environ["TINKER_API_KEY"]) as client:
        model = known_model(client, asked.url, None)
        ask = sampler_of(client, model)

        def in_time(prompt: str, most: int) -> str:
            if time.monotonic() > deadline:
                raise Unavailable("The time for this row is over.")
            return ask(prompt, most)

        contenders = {name: BLIND[name] for name in BESIDE} | written_by(in_time)
        # All at once: each waits for its own last text, and the server writes the texts of all in one batch.
        with ThreadPoolExecutor(len(contenders)) as pool:
            waiting = {
                name: pool.submit(row, name, one, conversation, asked.budget, count) for name, one in contenders.items()
            }
        late = [name for name, row_of in waiting.items() if isinstance(row_of.exception(), Unavailable)]
        rows = [row_of.result() for name, row_of in waiting.items() if name not in late]
    record = {
        "conversation": f"the first {len(conversation.turns)} turns of {asked.only}",
        "model": f"{model}, greedy, at most {MOST_WRITTEN} tokens a text",
        "not_there_in_time": late,
        "tables": {"written": msgspec.to_builtins(rows)},
        "seconds": round(time.monotonic() - started),
        **about,
    }
    path = RESULTS / "memory" / "written.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    print(study.table_of(rows), late)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", required=True, help="a conversation of LoCoMo's")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--budget", type=float, default=0.25, help="a share of the turns' tokens")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--data-dir", type=Path, default=Path(Config().data_dir))
    return parser.parse_args()


def beginning(conversation: Conversation, turns: int) -> Conversation:
    """Its first turns, with the questions whose evidence lies in them."""
    questions = tuple(one for one in conversation.questions if one.evidence and max(one.evidence) < turns)
    return Conversation(conversation.name, conversation.turns[:turns], questions)


def row(name: str, contender: Blind, conversation: Conversation, budget: float, count: CountTokens) -> study.Row:
    tally = study.Tally()
    segments = contender(conversation, study.budget_of(conversation, budget, count), count)
    kept = turns_kept(segments, conversation.turns)
    for number in range(len(conversation.questions)):
        tally.add(conversation, number, segments, kept)
    return tally.row(name, budget)


if __name__ == "__main__":
    main()
