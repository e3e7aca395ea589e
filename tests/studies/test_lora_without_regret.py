"""The study of LoRA: every adapter is trained once, kinds are compared fairly, and the page gets what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import tinker
from transformers import AutoTokenizer

from bench.record import about_the_run
from loreloop.cli.server import RunningServer
from studies.lora_without_regret import (
    BEGIN,
    END,
    IMAGE,
    PAGE,
    PARTS,
    Asked,
    Run,
    Setting,
    Study,
    block_of,
    report,
    rows_of,
    run_of,
    with_block,
)

TINY = Setting(
    ranks=(1, 4),
    rates=(1e-3, 1e-2),
    seeds=(0,),
    n_seen=16,
    batch=8,
    n_measured=4,
    sites_rank=16,
    batches=(4,),
    batch_rank=2,
    rl_ranks=(1,),
    rl_rates=(1e-3,),
    warm_up_seen=8,
    rl_steps=2,
    rl_questions=2,
    rl_group=2,
)
N_RUNS = 1 + 2 * 2 + 2 * 2 + 1 * 2 + 1


def study(server: RunningServer, out: Path, setting: Setting = TINY) -> Study:
    begin = partial(tinker.ServiceClient, base_url=server.url, api_key=server.key)
    tokenizer = AutoTokenizer.from_pretrained(server.data / "models" / "tiny")
    return Study(begin, "tiny", tokenizer, setting, out)


@pytest.fixture(scope="module")
def runs(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    out = tmp_path_factory.mktemp("study")
    return out, study(server, out).run()


def test_every_adapter_is_trained(runs: tuple[Path, list[Run]]) -> None:
    _, found = runs
    assert [run.asked.part for run in found] == ["untrained", *["rank"] * 4, *["sites"] * 4, *["batch"] * 2, "rl"]
    assert all(run.loss > 0 and 0 <= run.right <= 1 for run in found)
    assert [run.step_seconds > 0 for run in found] == [False] + [True] * (N_RUNS - 1)
    assert [run.before is not None for run in found] == [run.asked.part == "rl" for run in found]


def test_a_larger_rate_learns_more_of_so_few_sums(runs: tuple[Path, list[Run]]) -> None:
    """What is learned is what is measured: tokens of sums, which a new model does not know."""
    losses = {run.asked.rate: run.loss for run in runs[1] if run.asked.part == "rank" and run.asked.rank == 4}
    assert losses[1e-2] < losses[1e-3] < runs[1][0].loss


def test_attention_and_mlp_alone_are_of_one_size(runs: tuple[Path, list[Run]]) -> None:
    sizes = {run.asked.sites: run.n_bytes for run in runs[1] if run.asked.part == "sites"}
    ranks = {run.asked.sites: run.asked.rank for run in runs[1] if run.asked.part == "sites"}
    assert ranks["mlp"] == TINY.sites_rank != ranks["attention"]
    assert sizes["attention"] == pytest.approx(sizes["mlp"], rel=0.05)


def test_a_second_start_trains_nothing_again(
    server: RunningServer, runs: tuple[Path, list[Run]], tmp_path: Path
) -> None:
    out, found = runs
    lines = (out / "lora_without_regret.jsonl").read_text().splitlines()
    assert [run_of(json.loads(line)) for line in lines[1:]] == found
    # A death has cut the last line: that run is made again, and no other.
    (tmp_path / "lora_without_regret.jsonl").write_text("\n".join(lines)[:-20])
    again = study(server, tmp_path)
    assert len(again.runs) == N_RUNS - 1
    assert [run.asked for run in again.run()] == [run.asked for run in found]
    assert again.runs == found[:-1]


def test_runs_of_another_setting_are_not_taken_for_these(server: RunningServer, runs: tuple[Path, list[Run]]) -> None:
    with pytest.raises(SystemExit, match="another setting"):
        study(server, runs[0], replace(TINY, n_seen=32))


def made(rate: float, seed: int, chosen_by: float, loss: float) -> Run:
    return Run(Asked("rank", "all", 8, rate, 32, seed), 1_000_000, chosen_by, loss, 0.5, 1.0)


def test_the_rate_is_not_chosen_by_what_is_reported() -> None:
    lucky = [made(1e-3, 0, chosen_by=2.0, loss=0.1), made(1e-3, 1, chosen_by=2.0, loss=0.1)]
    best = [made(1e-4, 0, chosen_by=1.0, loss=0.5), made(1e-4, 1, chosen_by=2.5, loss=0.7)]
    (row,) = rows_of([*lucky, *best])
    assert (row.name, row.rate) == ("all, rank 8", 1e-4)
    assert (row.loss, row.spread) == pytest.approx((0.6, 0.2))


def test_sums_to_choose_by_and_to_measure_by_are_no_sums_to_learn(server: RunningServer, tmp_path: Path) -> None:
    one = study(server, tmp_path, Setting())
    parts = [{frozenset((each.left, each.right)) for each in some} for some in (one.train, one.measured_on)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0].isdisjoint({frozenset((each.left, each.right)) for each in one.chosen_on})
    assert not {*one.chosen_on} & {*one.measured_on}
    assert len(one.chosen_on) == len(one.measured_on) == 128


def test_the_page_gets_what_came_out(runs: tuple[Path, list[Run]], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    for _ in range(2):  # written anew, and not once more
        report(runs[1], TINY, tmp_path, page)
    text = page.read_text()
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert "No figures have been measured" not in text
    assert text.split(BEGIN)[0] == PAGE.read_text().split(BEGIN)[0]
    assert (
        sum(line.startswith(("| untrained", "| all", "| attention", "| mlp", "| batches")) for line in text.split("\n"))
        == 7
    )
    picture = (tmp_path / IMAGE).read_text()
    assert all(f">{'share right' if part == 'rl' else f'loss: {part}'}<" in picture for part in PARTS)
    record = json.loads((tmp_path / "lora_without_regret.json").read_text())
    assert record["setting"]["n_seen"] == 16
    assert len(record["rows"]) == 7


def test_the_page_says_what_the_record_says() -> None:
    record = PAGE.parents[1] / "studies/results/lora_without_regret.json"
    if not record.exists():
        assert "**No figures have been measured yet.**" in PAGE.read_text()
        return
    lines = (record.with_suffix(".jsonl")).read_text().splitlines()[1:]
    block = block_of(rows_of(run_of(json.loads(line)) for line in lines), json.loads(record.read_text()))
    assert with_block(PAGE.read_text(), block) == PAGE.read_text()


@pytest.mark.slow
def test_the_quick_study_of_the_default_model_ends_in_a_quarter_of_an_hour(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "studies.lora_without_regret", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=PAGE.parents[1], env=os.environ | {"TINKER_TELEMETRY": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| all, rank 64 |" in done.stdout
    assert time.monotonic() - started < 900
    lines = (tmp_path / "lora_without_regret.jsonl").read_text().splitlines()[1:]
    untrained, *others = [run_of(json.loads(line)) for line in lines]
    assert min(run.loss for run in others) < 0.7 * untrained.loss


def test_a_record_names_the_machine_and_the_commit(runs: tuple[Path, list[Run]]) -> None:
    block = block_of(rows_of(runs[1]), asdict(TINY) | about_the_run())
    assert str(about_the_run()["commit"]) in block
