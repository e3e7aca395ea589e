"""The numbers of a tiny seeded run stand still: golden.json holds them, and golden.py says how they are renewed.

The tolerance lies between what other processors do to fp32 and what a change does. Kernels off, and the tensor library
held to narrower vector instructions, move numbers by 3e-6; the smallest change of a setting below moves them by 2e-4.
"""

import json
import os
import subprocess
import sys

import msgspec
import pytest

from tests.golden import ADAM, FILE, Numbers, Recipe, differences, golden_run

TOLERANCE = 3e-5  # relative; tokens are whole numbers, so that another token is a difference far beyond it


@pytest.fixture(scope="module")
def golden() -> Numbers:
    return json.loads(FILE.read_text())


def moved(numbers: Numbers, golden: Numbers) -> dict[str, float]:
    return {name: size for name, size in differences(numbers, golden).items() if size > TOLERANCE}


def test_the_numbers_are_the_golden_ones(golden: Numbers) -> None:
    assert moved(golden_run(), golden) == {}


def test_they_are_without_kernels_too(golden: Numbers) -> None:
    command = [sys.executable, "-m", "tests.golden", "--print"]
    done = subprocess.run(command, env=os.environ | {"LORELOOP_KERNELS": "0"}, capture_output=True, check=True)
    assert moved(json.loads(done.stdout), golden) == {}


def test_the_restart_changes_nothing(golden: Numbers) -> None:
    for what in ("scores of the prompt", "tokens", "log-probs"):
        assert golden[f"after the restart: {what}"] == golden[f"after training: {what}"]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(adam=msgspec.structs.replace(ADAM, beta2=0.951)),
        Recipe(adam=msgspec.structs.replace(ADAM, weight_decay=1.01)),
        Recipe(adam=msgspec.structs.replace(ADAM, eps=1.1e-3)),
        Recipe(adam=msgspec.structs.replace(ADAM, grad_clip_norm=5.01)),
        Recipe(clip_high=1.21),
        Recipe(temperature=0.801),
        Recipe(rope_theta=10010.0),
        Recipe(lora_seed=4),
        Recipe(sample_seed=8),
    ],
)
def test_a_small_change_of_any_setting_is_noticed(recipe: Recipe, golden: Numbers) -> None:
    assert moved(golden_run(recipe), golden)
