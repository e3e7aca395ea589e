"""Checkpoints of 8-bit floats in blocks of 128 × 128: the values that the library's dequantiser has."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loreloop.formats.configuration import read_spec
from loreloop.protocol.errors import BadRequest
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

WEIGHTS = "model.safetensors"
ABOUT = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
SEQUENCE = tokens(20)


def configure(folder, about):
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": about}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a folder of 8-bit floats, the folder of their values)."""
    values = make_tiny_model(tmp_path_factory.mktemp("model") / "values", hidden_size=192, intermediate_size=320)
    eight = shutil.copytree(values, values.parent / "eight")
    plain, stored = load_file(values / WEIGHTS), {}
    for name, tensor in plain.items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        scale = torch.empty([-(-size // 128) for size in tensor.shape])
        codes = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
        for row, column in torch.cartesian_prod(*(torch.arange(n) for n in scale.shape)).tolist():
            block = (slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))
            scale[row, column] = tensor[block].abs().max() / 448
            codes[block] = (tensor[block] / scale[row, column]).to(torch.float8_e4m3fn)
            plain[name][block] = (codes[block].float() * scale[row, column]).bfloat16().float()
        stored |= {name: codes, f"{name}_scale_inv": scale}
    save_file(plain, values / WEIGHTS)
    save_file(stored, eight / WEIGHTS)
    configure(eight, ABOUT)
    return eight, values


def test_values_are_codes_times_their_block_s_scale(made):
    eight, values = made
    assert torch.equal(logprobs(load(eight), [SEQUENCE]), logprobs(load(values), [SEQUENCE]))


def test_shards_may_tear_weights_from_their_scales(made, tmp_path):
    tensors = load_file(made[0] / WEIGHTS)
    for scales in (0, 1):
        folder = shutil.copytree(made[0], tmp_path / str(scales))
        (folder / WEIGHTS).unlink()
        for number in (0, 1):
            part = {n: t for n, t in tensors.items() if n.endswith("_scale_inv") == (number == scales)}
            save_file(part, folder / f"model-{number}.safetensors")
        assert torch.equal(logprobs(load(folder), [SEQUENCE]), logprobs(load(made[1]), [SEQUENCE]))


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{NAME}_scale_inv"), "float8_e4m3fn, which is no weight by itself"),
        (lambda t: t.pop(NAME), "lacks the weight"),
        (lambda t: t.update({f"{NAME}_scale_inv": torch.ones(3, 1)}), r"scales \[3, 1\]"),
        (lambda t: t.update({f"{NAME}_scale_inv": torch.full((3, 2), torch.nan)}), "not finite"),
    ],
)
def test_damaged_scales_are_refused_by_name(made, tmp_path, change, words):
    folder = shutil.copytree(made[0], tmp_path / "tiny")
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(BadRequest, match=words):
        load(folder)


@pytest.mark.parametrize("change", [{"weight_block_size": [64, 64]}, {"weight_block_size": None}, {"fmt": "e5m2"}])
def test_other_forms_are_refused_before_anything_is_read(made, tmp_path, change):
    folder = shutil.copytree(made[0], tmp_path / "tiny")
    configure(folder, ABOUT | change)
    with pytest.raises(BadRequest, match="fp8"):
        read_spec(folder)
