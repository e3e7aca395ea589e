"""What training adds to the memory of an engine that has just loaded its base, on the shape of the default model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loreloop.cli.serve import MEMORY
from tests.tiny import make_tiny_model

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
}
ROOT = Path(__file__).parents[2]
N_PARAMETERS = 11_360_256  # rank 32 everywhere
BATCH_BYTES = 0.8e9
CHILD = """
import json, sys
from pathlib import Path
from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.protocol.training import AdamParams, CreateModel, LoraSpec, OptimStep
from tests.engine.train_rig import datum, random_tokens, train_pass

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

folder, work, n_shared, lengths, n_models = json.loads(sys.argv[1])
engine = LocalEngine(EngineConfig(device="cpu", precision="bf16"), "base", Path(folder), Path(work))
base = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
for number in range(n_models):
    engine.create_model(CreateModel(str(number), 0, "r", LoraSpec(32, number)))
    chosen = list(enumerate(lengths if number == 0 else lengths[:1], start=1))
    shared = random_tokens(n_shared, 0, 49152)
    data = [datum([*shared, *random_tokens(n, i, 49152)]) for i, n in chosen]
    engine.train([train_pass(*data, model=str(number))], lambda: None)
    engine.optim_step(OptimStep(str(number), 2, "r", AdamParams()))
assert engine.bank.get("0").layout.size == 11_360_256
print(memory("VmHWM") - base)
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=49152, **SHAPE)


def peak_bytes(folder, tmp_path, n_shared, lengths, n_models):
    """In a process of its own, so that nothing else is counted."""
    arguments = json.dumps([str(folder), str(tmp_path / "work"), n_shared, lengths, n_models])
    command = [sys.executable, "-c", CHILD, arguments]
    # As `serve` starts its engines: with the user's compiler in reach, since other products need other memory.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **MEMORY}
    run = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1800)
    return int(run.stdout)


SHAPES = [(0, [512] * 8), (0, [4096]), (2048, [64] * 32), (256, [1] * 256)]


@pytest.mark.parametrize(("n_shared", "lengths"), SHAPES, ids=["eight", "one", "group", "tiny answers"])
def test_a_batch_of_4096_tokens_stays_in_its_bound(folder, tmp_path, n_shared, lengths):
    peak = peak_bytes(folder, tmp_path, n_shared, lengths, 1)
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak <= 18 * N_PARAMETERS + BATCH_BYTES


def test_two_models_of_eight_stay_in_their_bound(folder, tmp_path):
    peak = peak_bytes(folder, tmp_path, 0, [512] * 8, 8)
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak <= 1.3e9
