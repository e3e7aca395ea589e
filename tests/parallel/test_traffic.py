"""What ranks are measured to say is what the formulas say, in a pass, an optimizer's step and a step of sampling."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loreloop.formats.configuration import read_spec
from loreloop.model.spec import DecoderSpec, MoeSpec
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.mesh_traffic import (
    Touched,
    Traffic,
    even_touch,
    sampling_traffic,
    sent,
    step_traffic,
    training_traffic,
)
from loreloop.parallel.traffic import Work, on_the_wire
from loreloop.protocol.training import Datum, LoraSpec
from tests.engine.train_rig import datum, random_tokens
from tests.parallel.life import PROMPT, pass_and_step
from tests.parallel.rig import on_ranks
from tests.tiny import make_tiny_model

N_ROWS = 45
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("tp=2", "qwen2", {}, {}),
    "rows": ("sp=2", "qwen2", {}, {"train_unembed": True}),
    "experts": ("tp=2", "qwen3_moe", {}, {"experts": "shared_outer"}),
    "copied keys": ("tp=4", "olmo2", {}, {}),
    "stages": ("pp=2,tp=2", "deepseek_v3", {"tie_word_embeddings": False}, {"train_unembed": True}),
    "rows of stages": ("pp=2,sp=2", "qwen2", {"tie_word_embeddings": False}, {"train_unembed": True}),
    "latent": ("ep=2,tp=2", "deepseek_v3", {}, {"train_unembed": True}),
    "each": ("ep=2", "qwen3_moe", {}, {"experts": "per_expert"}),
}


def together(traffic: Traffic) -> Counter[str]:
    """All axes' bytes by kind, as a process counts them."""
    return sum(traffic.values(), Counter())


def routed(spec: DecoderSpec) -> Datum:
    """Data whose routes are known, where there are any: the same in all layers."""
    plain = datum(random_tokens(N_ROWS, 1))
    if spec.moe is None:
        return plain
    routes = np.repeat(choices(spec.moe, N_ROWS)[:, None], len(spec.moe.layers), axis=1)
    return msgspec.structs.replace(plain, routes=routes.astype("<i2").tobytes())


def choices(moe: MoeSpec, n_rows: int) -> np.ndarray:
    """Any K experts of each row, (N, K)."""
    random = np.random.default_rng(3)
    return random.permuted(np.tile(np.arange(moe.n_experts), (n_rows, 1)), axis=1)[:, : moe.top_k]


def touched(moe: MoeSpec, n_rows: int, at: int, n_ranks: int) -> Touched:
    """Rows with an expert on a rank whose home is elsewhere, counted."""
    has = (choices(moe, n_rows) // (moe.n_experts // n_ranks) == at).any(1)
    elsewhere = np.arange(n_rows) // -(-n_rows // n_ranks) != at
    return Touched(int((has & elsewhere).sum()))


@pytest.mark.parametrize("name", CASES)
def test_measured_bytes_equal_the_formula(name: str, tmp_path: Path) -> None:
    mesh_text, family, sizes, lora = CASES[name]
    folder = make_tiny_model(tmp_path / "model", family, **sizes)
    spec, mesh, lora_spec = read_spec(folder), parse_mesh(mesh_text), LoraSpec(4, 0, **lora)
    work = Work(rows=N_ROWS, pairs=N_ROWS, n_bytes=4)
    found = on_ranks(mesh_text, tmp_path, pass_and_step, folder, tmp_path, {}, lora, routed(spec))
    for rank, of_rank in enumerate(found):
        trained, stepped, drawn = (Counter(each) for each in of_rank["said"])
        chosen = touched(spec.moe, N_ROWS, mesh.at(rank)["ep"], mesh.ep) if spec.moe else None
        assert +trained == +together(training_traffic(spec, mesh, rank, work, chosen))
        assert +stepped == +together(step_traffic(spec, mesh, rank, lora_spec))
        if mesh.ep == 1:  # a sample chooses its experts itself
            drawing = Work(rows=len(PROMPT), pairs=1, n_bytes=4)
            assert +drawn == +together(sampling_traffic(spec, mesh, rank, drawing))


@pytest.mark.parametrize("n_ranks", [2, 8, 64])
def test_even_loads_are_what_chance_gives(n_ranks: int) -> None:
    moe = MoeSpec(n_experts=384, top_k=8, d_expert=1, layers=(0,))
    n_rows = 32_768
    counted = np.mean([touched(moe, n_rows, at, n_ranks).elsewhere for at in range(0, n_ranks, max(1, n_ranks // 8))])
    assert even_touch(moe, n_rows, n_ranks).elsewhere == pytest.approx(counted, rel=0.02)


def test_a_ring_sends_a_sum_twice_and_an_exchange_as_counted() -> None:
    assert on_the_wire(Counter(sum=800, gather=400, scatter=400), 4) == 0.75 * (1600 + 800)
    said: Traffic = {"tp": Counter(sum=800), "ep": Counter(exchange=70), "pp": Counter(hand=30)}
    assert sent(said, parse_mesh("tp=4,ep=2,pp=2")) == {"tp": 1200, "ep": 70, "pp": 30}
