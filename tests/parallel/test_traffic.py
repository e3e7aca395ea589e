"""What ranks are measured to say is what the formulas say, in a pass, an optimizer's step and a step of sampling."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loreloop.formats.load import read_spec
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.shares import share_of
from loreloop.parallel.traffic import Work, on_the_wire, sampling_bytes, step_bytes, training_bytes
from loreloop.protocol.training import LoraSpec
from tests.parallel.life import PROMPT, pass_and_step
from tests.parallel.rig import on_ranks
from tests.tiny import make_tiny_model

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("tp=2", "qwen2", {}, {}),
    "rows": ("sp=2", "qwen2", {}, {"train_unembed": True}),
    "experts": ("tp=2", "qwen3_moe", {}, {"experts": "shared_outer"}),
    "copied keys": ("tp=4", "olmo2", {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_measured_bytes_equal_the_formula(name: str, tmp_path: Path) -> None:
    mesh, family, sizes, lora = CASES[name]
    folder = make_tiny_model(tmp_path / "model", family, **sizes)
    spec, laid_out, n_ranks = read_spec(folder), parse_mesh(mesh), parse_mesh(mesh).n_ranks
    lora_spec = LoraSpec(4, 0, **lora)
    for rank, found in enumerate(on_ranks(mesh, tmp_path, pass_and_step, folder, tmp_path, {}, lora)):
        share = share_of(spec, laid_out, rank)
        trained = training_bytes(spec, n_ranks, Work(rows=45, pairs=45, n_bytes=4), cuts_rows=laid_out.cuts_rows)
        drawn = sampling_bytes(spec, n_ranks, Work(rows=len(PROMPT), pairs=1, n_bytes=4))
        said = [trained, step_bytes(share, share.layout(lora_spec), n_ranks), drawn]
        assert [Counter(each) for each in found["said"]] == said


def test_a_ring_sends_a_sum_twice() -> None:
    assert on_the_wire(Counter(sum=800, gather=400, scatter=400), 4) == 0.75 * (1600 + 800)
