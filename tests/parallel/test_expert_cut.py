"""Ranks that share a model's experts give the numbers of one process, in both forms of adapters."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from loreloop.formats.configuration import read_spec
from loreloop.model.lora import AdapterView, LoraLayout
from loreloop.parallel.mesh import parse_mesh
from loreloop.parallel.place import ALONE
from loreloop.parallel.shares import share_of
from loreloop.protocol.training import ForwardBackward, LoraSpec
from tests.engine.train_rig import datum, random_tokens, relative_error, train_pass
from tests.parallel.expert_rank import Case, by_one, passed, sampled, saved_again, stepped
from tests.parallel.rig import on_ranks
from tests.parallel.scene import scene
from tests.tiny import make_tiny_model

FORMS = ("shared_outer", "per_expert")
# Eight experts, which four ranks can share.
FAMILIES: dict[str, dict[str, int]] = {
    "qwen3_moe": {"num_experts": 8},
    "gpt_oss": {"num_local_experts": 8},
    "deepseek_v3": {},
}
N_TOKENS = 23


def model(folder: Path, family: str, **settings: int) -> Path:
    return make_tiny_model(folder / "model", family, num_key_value_heads=4, **FAMILIES[family], **settings)


def routed(folder: Path, choices_NK: np.ndarray) -> ForwardBackward:
    """A pass over one text whose tokens are routed so in every layer."""
    n_layers = len(read_spec(folder).moe.layers)
    routes = np.repeat(choices_NK[:, None], n_layers, axis=1).astype("<i2").tobytes()
    return train_pass(msgspec.structs.replace(datum(random_tokens(len(choices_NK), 7)), routes=routes))


def uneven(folder: Path) -> ForwardBackward:
    """All tokens go to the first experts, which one rank holds."""
    return routed(folder, np.tile([0, 1, 2], (N_TOKENS, 1)))


def random_choices(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(8)[:3] for _ in range(N_TOKENS)])


def whole(found: list[dict[str, Any]], name: str, size: int) -> Tensor:
    """A vector of all ranks' numbers; what several of them hold must be the same bits on each."""
    vector = torch.full((size,), torch.nan)
    for rank in found:
        held = vector[rank["numbers"]]
        both = ~held.isnan()
        assert torch.equal(held[both], rank[name][both])
        vector[rank["numbers"]] = rank[name]
    assert not vector.isnan().any(), "every number of the adapter is held by some rank"
    return vector


@pytest.mark.parametrize("mesh", ["ep=2", "ep=4", "tp=2,ep=2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_give_what_one_process_gives(family: str, mesh: str, tmp_path: Path) -> None:
    folder = model(tmp_path, family)
    loras = [LoraSpec(4, 0, train_unembed=True, experts=form) for form in FORMS]
    cases = [Case(lora, op) for lora in loras for op in (scene(), uneven(folder))]
    by_rank = on_ranks(mesh, tmp_path, passed, folder, cases)
    for case, expected, *found in zip(cases, by_one(folder, cases), *by_rank, strict=True):
        for rank in found:
            assert (rank["logps"] - expected["logps"]).abs().max() <= 1e-5
            # Amid a pass all ranks must do other work at the same places, whatever experts each of them has.
            assert rank["pauses"] == found[0]["pauses"] != []
        layout = LoraLayout(read_spec(folder), case.lora)
        grad = whole(found, "grad", layout.size)
        assert relative_error(grad, expected["grad"]) <= 1e-5
        _check_sites(AdapterView(layout, grad), AdapterView(layout, expected["grad"]))


def _check_sites(found: AdapterView, expected: AdapterView) -> None:
    """Site by site: what is wrong in a small matrix cannot be seen in the length of the whole. Those before a routed
    layer have their gradient through its router; a delta that is scaled twice or cut from the graph shows in its own.
    """
    for key in expected.layout.places:
        pairs = zip((found.a(*key), *found.b(*key)), (expected.a(*key), *expected.b(*key)), strict=True)
        for mine, whole_one in pairs:
            if whole_one.norm() > 0:
                assert relative_error(mine, whole_one) <= 2e-5, key
            else:
                assert mine.norm() == 0, key


@pytest.mark.parametrize("form", FORMS)
def test_copied_factors_stay_equal_and_begin_from_the_seed(form: str, tmp_path: Path) -> None:
    """After three steps too, what several ranks hold is the same bits on each (`whole` looks), and moves as in one
    process."""
    folder = model(tmp_path, "deepseek_v3")
    case = Case(LoraSpec(4, 11, experts=form), scene())
    found, expected = on_ranks("ep=2", tmp_path, stepped, folder, case, 3), stepped(ALONE, folder, case, 3)
    size = len(expected["numbers"])
    assert torch.equal(whole(found, "fresh", size), expected["fresh"])
    assert relative_error(whole(found, "moment2", size), expected["moment2"]) <= 1e-4
    moved = whole(found, "master", size) - expected["fresh"]
    assert relative_error(moved, expected["master"] - expected["fresh"]) <= 1e-3
    for rank in found:
        assert rank["norms"] == pytest.approx(expected["norms"], rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_any_mesh_loads_in_any_other(form: str, tmp_path: Path) -> None:
    folder, lora = model(tmp_path, "qwen3_moe"), LoraSpec(4, 0, experts=form)
    folders = [tmp_path / name for name in ("tensor", "expert", "one", "never")]
    for mesh, source, target in zip(["tp=2", "ep=2"], ["", str(folders[0])], folders, strict=False):
        (tmp_path / mesh).mkdir()
        on_ranks(mesh, tmp_path / mesh, saved_again, folder, lora, source, str(target))
    saved_again(ALONE, folder, lora, str(folders[1]), str(folders[2]))
    saved_again(ALONE, folder, lora, "", str(folders[3]))
    for file in folders[3].iterdir():
        for other in folders[:3]:
            assert (other / file.name).read_bytes() == file.read_bytes(), file.name


def test_packed_experts_are_held_as_they_are(tmp_path: Path) -> None:
    folder = model(tmp_path, "qwen3_moe")
    cases = [Case(LoraSpec(4, 0), scene())]
    (expected,) = by_one(folder, cases, quantize=True)
    (plain,) = by_one(folder, cases)
    assert (plain["logps"] - expected["logps"]).abs().max() > 1e-3, "weights were packed"
    for (rank,) in on_ranks("ep=2", tmp_path, passed, folder, cases, True):
        assert (rank["logps"] - expected["logps"]).abs().max() <= 1e-5


@pytest.mark.parametrize(("family", "mesh"), [("qwen3_moe", "ep=2"), ("deepseek_v3", "ep=4"), ("gpt_oss", "tp=2,ep=2")])
def test_samples_and_their_routes_are_those_of_one_process(family: str, mesh: str, tmp_path: Path) -> None:
    """Steps have one to a few rows, so that some ranks are the home of none. Recorded routes are then followed."""
    folder = model(tmp_path, family)
    prompts = [random_tokens(n, n) for n in (5, 40, 9, 17)]
    found = on_ranks(mesh, tmp_path, sampled, folder, prompts)
    expected = sampled(ALONE, folder, prompts)
    for rank in found:
        for (tokens, logprobs, routes), (tokens_1, logprobs_1, routes_1) in zip(rank, expected, strict=True):
            assert tokens == tokens_1
            assert routes == routes_1
            for sample, values in logprobs_1.items():
                assert logprobs[sample] == pytest.approx(values, abs=1e-5)
    replayed = []
    for prompt, (tokens, _, routes) in zip(prompts, expected, strict=True):
        text = [*prompt, *tokens[1][:-1]]
        replayed.append(msgspec.structs.replace(datum(text), routes=routes[1]))
    (tmp_path / "replay").mkdir()
    cases = [Case(LoraSpec(2, 0), train_pass(*replayed))]
    (one,) = by_one(folder, cases)
    for (rank,) in on_ranks(mesh, tmp_path / "replay", passed, folder, cases):
        assert (rank["logps"] - one["logps"]).abs().max() <= 1e-5


def sent_bytes(choices_NK: np.ndarray, rank: int, n_ranks: int, row_bytes: int) -> int:
    """What a rank sends in one layer and direction: results for rows whose home is elsewhere and of which it has an
    expert, and its home's rows to all others."""
    n_rows, n_experts = len(choices_NK), 8 // n_ranks
    n_homed = -(-n_rows // n_ranks)
    chosen = (choices_NK // n_experts == rank).any(1)
    elsewhere = np.arange(n_rows) // n_homed != rank
    return int((chosen & elsewhere).sum() + n_homed * (n_ranks - 1)) * row_bytes


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_bytes_on_the_wire_are_those_of_the_formula(n_ranks: int, tmp_path: Path) -> None:
    folder = model(tmp_path, "qwen3_moe")
    spec, lora = read_spec(folder), LoraSpec(4, 0)
    choices = [random_choices(1), np.tile([0, 1, 2], (N_TOKENS, 1)), random_choices(2)]
    cases = [Case(lora, routed(folder, each)) for each in choices]
    found = on_ranks(f"ep={n_ranks}", tmp_path, passed, folder, cases)
    for rank, of_rank in enumerate(found):
        for each, case in zip(choices, of_rank, strict=True):
            once = sent_bytes(each, rank, n_ranks, 4 * spec.d_model)
            assert case["bytes"] == 2 * len(spec.moe.layers) * once, "there and back"


def test_every_expert_is_held_once(tmp_path: Path) -> None:
    spec = read_spec(model(tmp_path, "qwen3_moe"))
    shares = [share_of(spec, parse_mesh("tp=2,ep=4"), rank).local.moe.here for rank in range(8)]
    assert [[*here] for here in shares] == [[2 * (rank // 2), 2 * (rank // 2) + 1] for rank in range(8)]
