"""`python -m studies.lora_without_regret`: what rank, sites, learning rate and batch size do to LoRA, on one machine.

The questions are those of "LoRA Without Regret" (Schulman et al., Thinking Machines Lab, 2025), asked of the default
model and sums of two numbers, by the Tinker SDK against a server of its own. Every kind of adapter meets the same sums
in the same order and every learning rate; the rate is chosen on sums of its own, and what is reported is measured on
others.

Runs are kept as they end in `--out` (studies/results), and a second start goes on behind them. At the end the table and
the plot of docs/lora-without-regret.md are written anew; `--quick` is a small setting that writes neither.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tinker

from bench.record import about_the_run
from loreloop.demo.questions import Question, two_digit
from loreloop.demo.supervised import chat_datum

MODEL = "smollm2-135m"
ROOT = Path(__file__).parents[1]
OUT, PAGE, IMAGE = ROOT / "studies/results", ROOT / "docs/lora-without-regret.md", "images/lora-without-regret.svg"
BEGIN, END = "<!-- Written by the study: begin -->", "<!-- Written by the study: end -->"
ANSWER_TOKENS = 6
SITES: dict[str, dict[str, Any]] = {"all": {}, "attention": {"train_mlp": False}, "mlp": {"train_attn": False}}
PARTS = ("rank", "sites", "batch", "rl")
Begin = Callable[[], tinker.ServiceClient]


@dataclass(frozen=True)
class Setting:
    """How much is run. Every supervised run sees `n_seen` sums, so that a larger batch has fewer steps; `sites_rank` is
    that of the adapters on the MLP, beside which those on attention have as many bytes. Reinforcement learning begins
    behind `warm_up_seen` sums at a rate of `warm_up_rate`."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    n_seen: int = 2048
    batch: int = 32
    n_measured: int = 128
    sites_rank: int = 16
    batches: tuple[int, ...] = (8, 32, 128)
    batch_rank: int = 16
    rl_ranks: tuple[int, ...] = (1, 8, 32)
    rl_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    warm_up_seen: int = 1024
    warm_up_rate: float = 1e-3
    rl_steps: int = 40
    rl_questions: int = 8
    rl_group: int = 8


QUICK = Setting(
    ranks=(1, 8, 64),
    rates=(3e-4, 3e-3),
    seeds=(0,),
    n_seen=128,
    batch=16,
    n_measured=24,
    batches=(8, 32),
    rl_ranks=(1, 8),
    rl_rates=(3e-4,),
    warm_up_seen=128,
    rl_steps=3,
    rl_questions=4,
    rl_group=4,
)


@dataclass(frozen=True)
class Asked:
    """One adapter that is to be trained."""

    part: str
    sites: str
    rank: int
    rate: float
    batch: int
    seed: int


# A new adapter changes nothing: what all others are to be better than.
UNTRAINED = Asked("untrained", "all", 1, 0.0, 1, 0)


@dataclass(frozen=True)
class Run:
    """What came of one. `chosen_by` is the loss on the sums by which rates are chosen, in nats a token, or the share
    that is not right for reinforcement learning; `loss` and `right` are measured on others; `before` is the share that
    was right before reinforcement learning."""

    asked: Asked
    n_bytes: int
    chosen_by: float
    loss: float
    right: float
    step_seconds: float
    before: float | None = None


class Study:
    """One setting against one server. `begin` opens a session: each adapter has one of its own, so that the server need
    not hold all of them. `out` gets every run as it ends."""

    def __init__(self, begin: Begin, model: str, tokenizer: Any, setting: Setting, out: Path) -> None:
        self.begin, self.model, self.tokenizer, self.setting = begin, model, tokenizer, setting
        split = two_digit(seed=0)
        n = setting.n_measured
        self.train, self.chosen_on, self.measured_on = split.train, split.held_out[:n], split.held_out[n : 2 * n]
        self.file = out / "lora_without_regret.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        # The first line says by which setting the runs were made, and a run is nothing under another one.
        mark = json.dumps({"model": model} | asdict(setting))
        known, *lines = _whole_lines(self.file) or [mark]
        if known != mark:
            sys.exit(f"{self.file} holds runs of another setting; name another folder by --out, or remove the file.")
        self.file.write_text("".join(line + "\n" for line in (mark, *lines)))
        self.runs = [run_of(json.loads(line)) for line in lines]

    def run(self) -> list[Run]:
        """All runs, of which those that are there already are not made again."""
        found = {run.asked: run for run in self.runs}
        for asked in self.asked():
            if asked not in found:
                with self.begin() as service:
                    adapter = Adapter(self, service, asked)
                    run = found[asked] = adapter.rewarded() if asked.part == "rl" else adapter.supervised()
                with self.file.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                print(f"{asked}  loss {run.loss:.3f}  right {run.right:.2f}  {run.step_seconds:.2f} s", flush=True)
        return [found[asked] for asked in self.asked()]

    def asked(self) -> Iterator[Asked]:
        """Every adapter of the setting."""
        setting = self.setting
        yield UNTRAINED
        kinds = [("rank", "all", rank, setting.batch) for rank in setting.ranks]
        kinds += [("sites", sites, rank, setting.batch) for sites, rank in self.alike.items()]
        kinds += [("batch", "all", setting.batch_rank, batch) for batch in setting.batches]
        for part, sites, rank, batch in kinds:
            for rate in setting.rates:
                yield from (Asked(part, sites, rank, rate, batch, seed) for seed in setting.seeds)
        for rank in setting.rl_ranks:
            for rate in setting.rl_rates:
                yield from (Asked("rl", "all", rank, rate, setting.batch, seed) for seed in setting.seeds)

    @cached_property
    def alike(self) -> dict[str, int]:
        """Ranks at which adapters on attention and on the MLP alone have as many bytes: these grow with the rank."""
        sizes, rank = {}, self.setting.sites_rank
        for sites in ("attention", "mlp"):
            with self.begin() as service:
                adapter = Adapter(self, service, Asked("sites", sites, rank, 0.0, 1, 0))
                with adapter.saved() as (_, sizes[sites]):
                    pass
        return {"attention": round(rank * sizes["mlp"] / sizes["attention"]), "mlp": rank}

    def datum(self, question: Question) -> tinker.Datum:
        """A sum with its answer, which alone carries weight."""
        said = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
        return chat_datum(self.tokenizer, said)

    def prompt(self, question: Question) -> list[int]:
        """A sum as the model is asked."""
        said = [{"role": "user", "content": question.text}]
        text = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def params(self, temperature: float, seed: int) -> tinker.SamplingParams:
        """How an answer is drawn."""
        stop = [self.tokenizer.eos_token_id]
        return tinker.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=temperature, seed=seed, stop=stop)

    def is_right(self, question: Question, sequence: tinker.SampledSequence) -> bool:
        """Whether an answer ends with the right number."""
        return question.is_answered_by(str(self.tokenizer.decode(sequence.tokens, skip_special_tokens=True)))


class Adapter:
    """One adapter in a session of its own."""

    def __init__(self, study: Study, service: tinker.ServiceClient, asked: Asked) -> None:
        self.study, self.service, self.asked, self.setting = study, service, asked, study.setting
        made = service.create_lora_training_client(
            study.model, rank=asked.rank, seed=asked.seed, train_unembed=False, **SITES[asked.sites]
        )
        self.client: tinker.TrainingClient = made.result()

    @contextmanager
    def saved(self) -> Iterator[tuple[str, int]]:
        """A path to sample from, and the bytes of what was saved there; it goes with the block."""
        path = self.client.save_weights_for_sampler("study").result().path
        rest = tinker.RestClient(self.service.holder)
        found = rest.list_checkpoints(path.removeprefix("tinker://").split("/")[0]).result().checkpoints
        yield path, next(one.size_bytes or 0 for one in found if one.tinker_path == path)
        rest.delete_checkpoint_from_tinker_path(path).result()

    def supervised(self) -> Run:
        """Learns from sums with their answers."""
        study = self.study
        seconds = self._learn(self.setting.n_seen, self.asked.rate) if self.asked != UNTRAINED else 0.0
        chosen_by, loss = self._loss(study.chosen_on), self._loss(study.measured_on)
        with self.saved() as (path, n_bytes):
            return Run(self.asked, n_bytes, chosen_by, loss, self._right(path, study.measured_on), seconds)

    def rewarded(self) -> Run:
        """Right sums earn 1, others 0; advantages are what is earned beside the group's mean."""
        study, setting, asked = self.study, self.setting, self.asked
        self._learn(setting.warm_up_seen, setting.warm_up_rate)
        with self.saved() as (path, _):
            before = self._right(path, study.measured_on)
        rng, seconds = random.Random(asked.seed), []
        for _ in range(setting.rl_steps):
            started = time.perf_counter()
            sampler = self.client.save_weights_and_get_sampling_client().result()
            data = self._tried(sampler, rng.choices(study.train, k=setting.rl_questions), rng.randrange(1 << 30))
            if data:
                self._step(data, "importance_sampling", asked.rate)
            seconds.append(time.perf_counter() - started)
        loss = self._loss(study.measured_on)
        with self.saved() as (path, n_bytes):
            wrong, right = 1 - self._right(path, study.chosen_on), self._right(path, study.measured_on)
        return Run(asked, n_bytes, wrong, loss, right, statistics.median(seconds), before)

    def _learn(self, n_seen: int, rate: float) -> float:
        """Seconds a step, in the median. The sums and their order are the same for all of a seed."""
        order = random.Random(self.asked.seed).choices(self.study.train, k=n_seen)
        seconds = []
        for first in range(0, n_seen, self.asked.batch):
            started = time.perf_counter()
            self._step([*map(self.study.datum, order[first : first + self.asked.batch])], "cross_entropy", rate)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _step(self, data: list[tinker.Datum], loss: Any, rate: float) -> None:
        """The loss is a sum over the batch, which Adam does not mind: its steps have the same size at any scale."""
        passed = self.client.forward_backward(data, loss)
        stepped = self.client.optim_step(tinker.AdamParams(learning_rate=rate))
        passed.result()
        stepped.result()

    def _loss(self, questions: Sequence[Question]) -> float:
        """Nats a token of the answers."""
        data = [self.study.datum(question) for question in questions]
        n_tokens = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in data)
        return self.client.forward(data, "cross_entropy").result().metrics["loss:sum"] / n_tokens

    def _right(self, path: str, questions: Sequence[Question]) -> float:
        """The share of sums whose likeliest answer is right."""
        study, params = self.study, self.study.params(temperature=0.0, seed=0)
        sampler = self.service.create_sampling_client(model_path=path).result()
        asked = [(each, sampler.sample(_input(study.prompt(each)), 1, params)) for each in questions]
        return sum(study.is_right(each, future.result().sequences[0]) for each, future in asked) / len(asked)

    def _tried(self, sampler: tinker.SamplingClient, questions: Sequence[Question], seed: int) -> list[tinker.Datum]:
        """A datum for each answer of groups whose answers did not all earn the same."""
        study, asked = self.study, []
        for number, question in enumerate(questions):
            prompt, params = study.prompt(question), study.params(temperature=1.0, seed=seed + number)
            asked.append((question, prompt, sampler.sample(_input(prompt), self.setting.rl_group, params)))
        data = []
        for question, prompt, future in asked:
            sequences = future.result().sequences
            earned = [float(study.is_right(question, one)) for one in sequences]
            mean = statistics.mean(earned)
            if 0 < mean < 1:
                data += [_answer(prompt, one, reward - mean) for one, reward in zip(sequences, earned, strict=True)]
        return data


def _input(tokens: Sequence[int]) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(list(tokens))


def _answer(prompt: Sequence[int], one: tinker.SampledSequence, advantage: float) -> tinker.Datum:
    tokens, heard = [*prompt, *one.tokens], [0.0] * (len(prompt) - 1)
    columns: dict[str, Any] = {
        "target_tokens": np.array(tokens[1:], dtype=np.int64),
        "logprobs": np.array([*heard, *(one.logprobs or [])], dtype=np.float32),
        "advantages": np.array([*heard, *[advantage] * len(one.tokens)], dtype=np.float32),
    }
    inputs = {name: tinker.TensorData.from_numpy(column) for name, column in columns.items()}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def _whole_lines(file: Path) -> list[str]:
    """A line that a death has cut is no run."""
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def run_of(plain: dict[str, Any]) -> Run:
    """A run as it was kept."""
    return Run(**(plain | {"asked": Asked(**plain["asked"])}))


# What came out


@dataclass(frozen=True)
class Row:
    """One kind of adapter at its best rate: means over the seeds, and the spread of what was measured."""

    part: str
    name: str
    rate: float
    n_bytes: float
    loss: float
    right: float
    spread: float
    step_seconds: float
    before: float | None


def rows_of(runs: Iterable[Run]) -> list[Row]:
    """For every kind of adapter the rate that is best on the sums by which rates are chosen."""
    kinds: dict[tuple[str, str], dict[float, list[Run]]] = {}
    for run in runs:
        kinds.setdefault((run.asked.part, name_of(run.asked)), {}).setdefault(run.asked.rate, []).append(run)
    found = []
    for (part, name), by_rate in kinds.items():
        rate = min(by_rate, key=lambda one: statistics.mean(run.chosen_by for run in by_rate[one]))
        best = by_rate[rate]
        measured = [run.right if part == "rl" else run.loss for run in best]
        before = [run.before for run in best if run.before is not None]
        found.append(
            Row(
                part=part,
                name=name,
                rate=rate,
                n_bytes=statistics.mean(run.n_bytes for run in best),
                loss=statistics.mean(run.loss for run in best),
                right=statistics.mean(run.right for run in best),
                spread=max(measured) - min(measured),
                step_seconds=statistics.median(run.step_seconds for run in best),
                before=statistics.mean(before) if before else None,
            )
        )
    return found


def name_of(asked: Asked) -> str:
    """A kind of adapter, whatever its rate and seed."""
    if asked == UNTRAINED:
        return "untrained"
    if asked.part == "batch":
        return f"batches of {asked.batch}, rank {asked.rank}"
    return f"{asked.sites}, rank {asked.rank}" + (", by reward" if asked.part == "rl" else "")


def block_of(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """The page's figures."""
    lines = [
        f"Measured on {record['date']}: {record['machine']}, {record['processor']}, commit `{record['commit']}`.",
        "",
        f"![Loss by rank, sites, batch and rate]({IMAGE})",
        "",
        "| adapter | best rate | MB | held-out loss | right, % | spread | right before, % | a step, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before = "" if row.before is None else f"{100 * row.before:.1f}"
        lines.append(
            f"| {row.name} | {row.rate:g} | {row.n_bytes / 1e6:.2f} | {row.loss:.3f} | {100 * row.right:.1f} | "
            f"{row.spread:.3f} | {before} | {row.step_seconds:.2f} |"
        )
    return "\n".join(lines)


def with_block(page: str, block: str) -> str:
    """The page with its figures in the place of those before."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{block}\n{END}", page, flags=re.DOTALL)


def draw(runs: Sequence[Run], file: Path) -> None:
    """Loss over the rate, a line for each kind of adapter, and for reinforcement learning what was right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "study"})
    drawn, axes = plt.subplots(1, len(PARTS), figsize=(4 * len(PARTS), 3.6))
    for axis, part in zip(axes, PARTS, strict=True):
        mine = [run for run in runs if run.asked.part == part]
        for name in dict.fromkeys(name_of(run.asked) for run in mine):
            by_rate: dict[float, list[float]] = {}
            for run in mine:
                if name_of(run.asked) == name:
                    by_rate.setdefault(run.asked.rate, []).append(run.right if part == "rl" else run.loss)
            rates = sorted(by_rate)
            axis.plot(rates, [statistics.mean(by_rate[rate]) for rate in rates], marker="o", label=name)
        axis.set(xscale="log", xlabel="learning rate", title="share right" if part == "rl" else f"loss: {part}")
        axis.legend(fontsize=7)
    drawn.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, metadata={"Date": None})
    plt.close(drawn)


def report(runs: Sequence[Run], setting: Setting, out: Path, page: Path) -> None:
    """Writes the record, the plot, and the page's figures."""
    record = {"setting": asdict(setting), **about_the_run(), "rows": [asdict(row) for row in rows_of(runs)]}
    (out / "lora_without_regret.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(runs, page.parent / IMAGE)
    page.write_text(with_block(page.read_text(), block_of(rows_of(runs), record)))


@contextmanager
def served() -> Iterator[tuple[Begin, Any]]:
    """What opens a session with a server of its own, and the model's tokenizer."""
    from transformers import AutoTokenizer

    from loreloop.cli.server import running_server
    from loreloop.config import Config
    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog

    catalog = Catalog(Config().data_path)
    folder = ensure(catalog, MODEL).folder
    with tempfile.TemporaryDirectory(prefix="loreloop-study-") as data:
        # Linked, since the model is large and there already; all else of the study's server goes with it.
        Path(data, "models").symlink_to(catalog.folder)
        with running_server(data, ["--model", MODEL]) as server:
            begin = partial(tinker.ServiceClient, base_url=server.url, api_key=server.key)
            yield begin, AutoTokenizer.from_pretrained(folder)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.lora_without_regret", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small setting, in 15 minutes or less")
    parser.add_argument("--out", type=Path, help="a folder for the runs")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore", FutureWarning)
        out = options.out or (Path(scratch) if options.quick else OUT)
        setting = QUICK if options.quick else Setting()
        with served() as (begin, tokenizer):
            runs = Study(begin, MODEL, tokenizer, setting, out).run()
        if options.quick:
            print(block_of(rows_of(runs), about_the_run()))
        else:
            report(runs, setting, out, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
