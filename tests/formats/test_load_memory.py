"""Loading holds one shard beside what stays: experts of 255 MB in bf16, stored as 510 MB in shards of fifty."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loreloop.cli.serve import MEMORY
from loreloop.formats.upcycle import Upcycling, upcycle
from tests.tiny import make_tiny_model

SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9}
ROOT, SHARD_BYTES = Path(__file__).parents[2], 50_000_000
CHILD = """
import sys, torch
from pathlib import Path
from loreloop.model.linear import FastProducts
from loreloop.formats.load import load_decoder

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
decoder = load_decoder(Path(sys.argv[1]), dtype=torch.bfloat16, device=torch.device("cpu"), products=FastProducts())
print(before, memory("VmRSS"), memory("VmHWM"))
"""
pytestmark = pytest.mark.slow


def test_the_peak_is_what_stays_and_one_shard(tmp_path):
    dense = make_tiny_model(tmp_path / "dense", num_key_value_heads=3, **SHAPE)
    folder = tmp_path / "moe"
    folder.mkdir()
    upcycle(dense, folder, Upcycling(noise=0.05), shard_bytes=SHARD_BYTES)
    assert len(list(folder.glob("*.safetensors"))) > 10
    # As `serve` starts its engines: with the user's compiler in reach.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **MEMORY}
    command = [sys.executable, "-c", CHILD, str(folder)]
    child = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    before, stays, peak = map(int, child.stdout.split())
    print(f"{stays / 1e6:.0f} MB stay, {(peak - stays) / 1e6:.0f} MB more at the peak")
    assert stays - before > 255e6
    assert peak - stays <= SHARD_BYTES
