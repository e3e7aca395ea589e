"""`python -m bench.memory_study NAME [FILE] …`: what the memory and its baselines keep, as `memory eval` counts it.

It writes bench/results/memory/NAME.json with the commit and the machine. The data sets are not part of this project;
without FILE the synthetic suite is used, at more lengths than `eval` has.
"""

from __future__ import annotations

import argparse
import time
from functools import lru_cache
from pathlib import Path

import msgspec

from bench.record import RESULTS, about_the_run
from loreloop.config import Config
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.memory.condense import CountTokens
from loreloop.memory.evaluation import endurance, minilm, published, shares, study, synthetic
from loreloop.memory.evaluation.cases import Conversation
from loreloop.memory.evaluation.contenders import BLIND
from loreloop.text.tokenizer import TextTokenizer

LENGTHS = (100, 316, 1000, 3162, 10000)  # turns of the conversations with needles
OVER_LENGTHS = ["memory", "uniform compression", "user's words, newest first", "recency window"]


def main() -> None:
    asked = arguments()
    folder = ensure(Catalog(asked.data_dir.expanduser()), "smollm2-135m").folder
    count = lru_cache(maxsize=1 << 16)(TextTokenizer(folder).count)
    started = time.perf_counter()
    if asked.file is None:
        report = made_up(count)
    else:
        loaded = published.load(asked.file, asked.format, asked.faults)
        chosen = [one for one in loaded if not asked.only or one.name in asked.only]
        if asked.shares:
            report = of_shares(chosen, asked.budget, count)
        else:
            report = of_file(chosen, asked.budget, count, blind_alone=asked.blind_alone)
    record = msgspec.to_builtins(report) | {
        "conversations": list(asked.only),
        "seconds": round(time.perf_counter() - started, 1),
        **about_the_run(),
    }
    path = RESULTS / "memory" / f"{asked.name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    print(study.text_of(report))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--format", default="locomo", choices=("locomo", "beam", "longmemeval"))
    parser.add_argument("--faults", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--budget", nargs="*", type=float, default=(0.25, 0.1))
    parser.add_argument("--blind-alone", action="store_true", help="leave out what knows the question")
    parser.add_argument("--shares", action="store_true", help="only what the memory adds to retrieval, by its share")
    parser.add_argument("--data-dir", type=Path, default=Path(Config().data_dir))
    return parser.parse_args()


def of_file(
    conversations: list[Conversation], budgets: list[float], count: CountTokens, *, blind_alone: bool
) -> study.Report:
    """Both tables of a published file; MiniLM's rows where its package is installed."""
    tables = {"not knowing the question": study.blind_rows(conversations, budgets, count, list(BLIND))}
    if not blind_alone:
        tables["knowing the question"] = study.knowing_rows(conversations, budgets, count, embedder())
    return study.Report(tables)


def of_shares(conversations: list[Conversation], budgets: list[float], count: CountTokens) -> study.Report:
    """The table of a memory's shares; MiniLM's rows where its package is installed."""
    return study.Report({"by the memory's share": shares.share_rows(conversations, budgets, count, embedder())})


def embedder() -> minilm.Embed | None:
    """MiniLM with its weights read, or None where its package is not installed."""
    folder = minilm.folder()
    return None if folder is None else minilm.MiniLm(folder)


def made_up(count: CountTokens) -> study.Report:
    """The synthetic suite, with needles at every length."""
    budget, n = study.SYNTHETIC["needles"]
    tables = {}
    for length in LENGTHS:
        conversations = [synthetic.needles(seed, length) for seed in range(n)]
        tables[f"needles, {length} turns"] = study.blind_rows(conversations, [budget], count, OVER_LENGTHS)
    tables |= study.synthetic_rows(count, (), ["memory", "recency window"])
    return study.Report(tables, endurance.survival(count, (1, 5, 20, 50)), endurance.pace(count))


if __name__ == "__main__":
    main()
