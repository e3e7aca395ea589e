"""Rotary angles against transformers', and rotation against complex numbers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loreloop.model.attention_spec import RopeSpec
from loreloop.model.families.family import rope_spec
from loreloop.model.families.olmo import Olmo
from loreloop.model.rope import BLOCK_POSITIONS, RopeTable, inverse_frequencies
from loreloop.protocol.errors import BadRequest
from tests.model.plain import CPU, LINEAR_ROPE, LLAMA3_ROPE

SPEC = rope_spec({"rope_theta": 10000.0})


@pytest.mark.numbers
@pytest.mark.parametrize("scaling", [LLAMA3_ROPE, LINEAR_ROPE], ids=["llama3", "linear"])
@pytest.mark.parametrize("d_head", [32, 64, 128])
def test_scaled_frequencies_equal_transformers(scaling, d_head):
    config = LlamaConfig(hidden_size=4 * d_head, num_attention_heads=4, rope_parameters=scaling)
    theirs, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, CPU)
    torch.testing.assert_close(inverse_frequencies(rope_spec(config.to_dict()), d_head), theirs)


YARN = {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 32.0, "original_max_position_embeddings": 4096}


@pytest.mark.numbers
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
        {"attention_factor": 1.5, "beta_fast": 16.0},
    ],
)
def test_yarn_equals_transformers(more):
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=YARN | more)
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](config, CPU)
    spec = rope_spec(config.to_dict())
    torch.testing.assert_close(inverse_frequencies(spec, 64), theirs)
    assert spec.attention_factor == pytest.approx(factor)
    assert float(RopeTable(spec, 64, CPU).at(torch.tensor([0])).cos_T1E[0, 0, 0]) == pytest.approx(factor)


def test_rotation_turns_each_pair_of_halves_by_its_angle():
    positions, x = torch.tensor([0, 3, 1000]), torch.randn(3, 2, 8)
    angles = positions[:, None, None] * inverse_frequencies(SPEC, 8)
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones(()), angles)
    own = RopeTable(SPEC, 8, CPU).at(positions).rotate(x)
    torch.testing.assert_close(own, torch.cat((turned.real, turned.imag), dim=-1), rtol=1e-4, atol=1e-4)


def test_a_position_has_the_same_angles_in_every_batch_and_across_blocks():
    far = torch.tensor([BLOCK_POSITIONS * 3 + 5])
    grown = RopeTable(SPEC, 8, CPU)
    grown.at(torch.tensor([4]))
    assert torch.equal(grown.at(far).cos_T1E, RopeTable(SPEC, 8, CPU).at(far).cos_T1E)
    assert torch.equal(grown.at(torch.tensor([4, 9])).sin_T1E[0], grown.at(torch.tensor([4])).sin_T1E[0])


def test_an_empty_batch_has_empty_angles():
    assert RopeTable(SPEC, 8, CPU).at(torch.tensor([], dtype=torch.int64)).cos_T1E.shape == (0, 1, 8)


def test_old_and_new_spellings_of_a_configuration_mean_the_same():
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old = rope_spec({"rope_theta": 500000.0, "rope_scaling": scaling})
    assert old == rope_spec({"rope_parameters": LLAMA3_ROPE})


def test_an_unknown_scaling_is_refused_by_name():
    with pytest.raises(BadRequest, match="dynamic"):
        rope_spec({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}})


STRETCHED = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.2}
OLMO3 = {
    "model_type": "olmo3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}


def test_olmo3_stretches_only_the_layers_that_see_all_tokens():
    """As it was trained, in its published spelling and in the newer one, which is that of each kind of layer."""
    published = Olmo().spec({**OLMO3, "rope_theta": 500000, "rope_scaling": STRETCHED})
    by_kind = {"full_attention": STRETCHED | {"rope_theta": 5e5}, "sliding_attention": {"rope_type": "default"}}
    assert published == Olmo().spec({**OLMO3, "rope_parameters": by_kind})
    assert published.rope.scaling == "yarn"
    assert published.attention.local_rope == RopeSpec(500000.0)


def test_olmo3_without_stretching_turns_all_layers_alike():
    alike = {kind: {"rope_type": "default", "rope_theta": 5e5} for kind in ("full_attention", "sliding_attention")}
    spec = Olmo().spec({**OLMO3, "rope_parameters": alike})
    assert spec == Olmo().spec({**OLMO3, "rope_theta": 5e5})
    assert spec.rope == RopeSpec(500000.0)
    assert spec.attention.local_rope is None


def test_embeddings_by_kind_of_layer_are_never_taken_for_one_that_names_no_base():
    with pytest.raises(BadRequest, match="full_attention"):
        rope_spec({"rope_theta": 1e6, "rope_parameters": {"full_attention": {"rope_theta": 5e5}}})
