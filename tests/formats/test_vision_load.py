"""Folders of vision models: every published spelling, published configurations, and what does not fit refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loreloop.formats.configuration import read_spec
from loreloop.formats.load import load_decoder
from loreloop.formats.vision import load_rules, load_vision
from loreloop.model.families.family import SeeingFamily
from loreloop.model.families.table import FAMILIES, family_of
from loreloop.model.linear import FastProducts
from loreloop.model.towers import TOWERS
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.images import FixedGrid, SmartGrid
from tests.tiny_vision import make_tiny_vision_model

CPU = torch.device("cpu")
# What each family's tensors were called over the years; the newest first.
SPELLINGS = {
    "llava": [
        ("model.language_model.", "lm_head.", "model.vision_tower.", "model.multi_modal_projector."),
        ("language_model.model.", "language_model.lm_head.", "vision_tower.", "multi_modal_projector."),
        ("model.language_model.model.", "language_model.lm_head.", "model.vision_tower.", "multi_modal_projector."),
        ("model.language_model.", "lm_head.", "model.vision_tower.", "multi_modal_projector."),
    ],
    "qwen3_vl": [("model.language_model.", "lm_head.", "model.visual."), ("language_model.", "lm_head.", "visual.")],
}


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def made(request, tmp_path_factory):
    return request.param, make_tiny_vision_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "tiny")


def rewrite(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")


def loaded(folder):
    decoder = load_decoder(folder, dtype=torch.float32, device=CPU, products=FastProducts())
    vision = load_vision(folder, dtype=torch.float32, device=CPU)
    return {"embedding": decoder.embedding_VD, "head": decoder.head.weight_OI} | vision.tower.parts.state_dict()


def renamed(name: str, spelling: tuple[str, ...]) -> str:
    """From whatever this transformers writes."""
    plain = name.removeprefix("model.").replace("language_model.model.", "language_model.")
    plain = plain.replace("language_model.lm_head.", "lm_head.")
    kinds = ("language_model.", "lm_head.", "vision_tower." if len(spelling) > 3 else "visual.")
    for kind, prefix in zip((*kinds, "multi_modal_projector."), spelling, strict=False):
        if plain.startswith(kind):
            return prefix + plain.removeprefix(kind)
    raise AssertionError(name)


def test_every_family_that_sees_has_a_tower():
    assert {name for name, family in FAMILIES.items() if isinstance(family, SeeingFamily)} == set(TOWERS)


def test_every_spelling_is_one_model(made, folder):
    expected = loaded(folder)
    for spelling in SPELLINGS[made[0]]:
        rewrite(folder, lambda tensors, s=spelling: {renamed(name, s): t for name, t in tensors.items()})
        own = loaded(folder)
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items()), spelling


def test_tensors_that_do_not_fit_are_refused_by_name(made, folder):
    name = next(n for n in load_file(folder / "model.safetensors") if n.endswith(("fc1.weight", "linear_fc1.weight")))
    for change, words in (
        (lambda t: {n: v for n, v in t.items() if n != name}, "lacks 1 tensors of the vision tower"),
        (lambda t: t | {name.replace("fc1", "fc9"): t[name].clone()}, "fc9.*no place for"),
        (lambda t: t | {name: t[name][:-1].clone()}, "has the shape"),
    ):
        broken = shutil.copytree(folder, folder.parent / "broken", dirs_exist_ok=True)
        rewrite(broken, change)
        with pytest.raises(BadRequest, match=words):
            load_vision(broken, dtype=torch.float32, device=CPU)


def read_both(folder):
    return read_spec(folder), load_rules(folder)


def test_settings_that_are_not_supported_are_refused(made, folder):
    family, config = made[0], json.loads((folder / "config.json").read_text())
    if family == "llava":
        changes = {"pixtral": {"vision_config": config["vision_config"] | {"model_type": "pixtral"}}}
        changes["mamba"] = {"text_config": config["text_config"] | {"model_type": "mamba"}}
    else:
        changes = {"yarn": {"text_config": config["text_config"] | {"rope_scaling": {"rope_type": "dynamic"}}}}
        changes["yarn"]["text_config"].pop("rope_parameters")
    for change in changes.values():
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadRequest, match="support"):
            read_both(folder)


def test_towers_keep_the_precision_asked_for(folder):
    vision = load_vision(folder, dtype=torch.bfloat16, device=CPU)
    assert {p.dtype for p in vision.tower.parts.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in vision.tower.parts.parameters())
    assert all(b.dtype != torch.bfloat16 for b in vision.tower.parts.buffers())


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_chooses_no_kernels(made, folder, key):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][key] = config[key] = "someone/their-kernel"
    (folder / "config.json").write_text(json.dumps(config))
    tower = load_vision(folder, dtype=torch.float32, device=CPU).tower.parts["tower"]
    assert tower.config._attn_implementation == "sdpa"


def test_a_tower_that_cannot_be_run_is_refused_when_it_is_loaded(made, folder):
    config = json.loads((folder / "config.json").read_text())
    change = (
        {"vision_feature_layer": 99}
        if made[0] == "llava"
        else {"text_config": config["text_config"] | {"hidden_size": 32}}
    )
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadRequest, match="vision tower of"):
        load_vision(folder, dtype=torch.float32, device=CPU)


def test_llava_as_published():
    """The configuration of llava-1.5-7b, which leaves out what is Llama's default."""
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "vocab_size": 32064,
            "rms_norm_eps": 1e-5,
        },
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    processor = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True}
    spec, rules = family_of(config).spec(config), family_of(config).image_rules(config, processor)
    assert (spec.n_layers, spec.d_model, spec.n_heads, spec.d_ff, spec.vocab_size) == (32, 4096, 32, 11008, 32064)
    assert rules.grid == FixedGrid(336, 336, 576, 336)


def test_qwen3_vl_as_published():
    """The configuration of Qwen3-VL-4B-Instruct, in its older spelling of rope."""
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text = {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": rope,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": True,
    }
    vision = {"patch_size": 16, "spatial_merge_size": 2}
    config = {"model_type": "qwen3_vl", "image_token_id": 151655, "text_config": text, "vision_config": vision}
    processor = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "image_mean": [0.5] * 3}
    spec, rules = family_of(config).spec(config), family_of(config).image_rules(config, processor)
    assert (spec.rope.theta, spec.rope.sections, spec.tie_embeddings) == (5e6, (24, 20, 20), True)
    assert rules.grid == SmartGrid(32, 65536, 16777216)
    assert rules.placeholder == 151655
