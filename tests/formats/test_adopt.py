"""Adapters of peft's: taken over with the same log-probs, whatever their settings, or refused by a setting's name.

And the other way: a folder of ours is loaded by peft with the same log-probs, or refused by it.
"""

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loreloop.formats.adopt import open_adapter
from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export, export_peft
from loreloop.formats.peft import CONFIG_FILE, WEIGHTS_FILE, write_adapter
from loreloop.formats.peft_config import OBEYED, REFUSED, WITHOUT_EFFECT
from loreloop.model.lora import UNEMBED, AdapterView, LoraBatch, LoraGroup, LoraLayout, init_flat
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec
from tests.model.plain import hidden, load, logprobs, tokens
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft's, about what these settings mean
SEQUENCE = tokens(40)
LISTED = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), "qwen2", tie_word_embeddings=request.param)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), "mixtral")


def published(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def made(base, folder, **settings):
    """A folder that peft saved, of an adapter that has been trained a little."""
    torch.manual_seed(3)
    model = get_peft_model(published(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def peft_logprobs(base, folder):
    model = PeftModel.from_pretrained(published(base), folder).eval()
    with torch.no_grad():
        return model(torch.tensor([SEQUENCE])).logits[0].log_softmax(-1)


def own_logprobs(base, view):
    decoder, lora = load(base), LoraBatch([LoraGroup(0, len(SEQUENCE), view)])
    with torch.no_grad():
        h_TD = hidden(decoder, [SEQUENCE], lora)
        return lora.linear(h_TD, decoder.head, decoder.spec.n_layers, UNEMBED).log_softmax(-1)


def assert_equal(base, view, folder):
    theirs, bare = peft_logprobs(base, folder), logprobs(load(base), [SEQUENCE])
    assert (theirs - bare).abs().max() > 0.01  # it does something
    assert (own_logprobs(base, view) - theirs).abs().max() <= 1e-4


TAKEN_OVER = {
    "alpha": {"r": 4, "lora_alpha": 7, "target_modules": LISTED},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True, "target_modules": LISTED},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LISTED,
        "rank_pattern": {"layers.1.self_attn.q_proj": 7, "down_proj": 2},
        "alpha_pattern": {"v_proj": 3, r"layers\.0\.mlp\..*": 20},
    },
    "patterns and rslora": {
        "r": 4,
        "use_rslora": True,
        "target_modules": LISTED,
        "rank_pattern": {"q_proj": 9},
        "alpha_pattern": {"q_proj": 5},
    },
    "a pattern of targets": {"r": 4, "target_modules": r".*\.layers\.[1]\..*(k_proj|up_proj)"},
    "all linear layers": {"r": 4, "target_modules": "all-linear"},
    "some layers": {"r": 4, "target_modules": LISTED, "layers_to_transform": [1], "layers_pattern": "layers"},
    "one layer": {"r": 4, "target_modules": LISTED, "layers_to_transform": 0},
    "some excluded": {"r": 4, "target_modules": "all-linear", "exclude_modules": ["up_proj", "layers.0.mlp.gate_proj"]},
    "a pattern of exclusions": {"r": 4, "target_modules": LISTED, "exclude_modules": r".*layers\.0.*"},
    "the unembedding": {"r": 4, "target_modules": ["q_proj", "lm_head"]},
    "fan in, fan out": {"r": 4, "target_modules": LISTED, "fan_in_fan_out": True},
    "gaussian": {"r": 4, "target_modules": LISTED, "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "target_modules": LISTED, "init_lora_weights": "orthogonal"},
    "pissa": {"r": 4, "lora_alpha": 5, "target_modules": LISTED, "init_lora_weights": "pissa"},
    "olora": {"r": 4, "lora_alpha": 5, "target_modules": LISTED, "init_lora_weights": "olora"},
    "pissa with patterns": {
        "r": 4,
        "target_modules": LISTED,
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "rank_pattern": {"v_proj": 6},
    },
}


@pytest.mark.numbers
@pytest.mark.parametrize("case", TAKEN_OVER)
def test_a_peft_adapter_is_taken_over_and_leaves_again_with_the_same_log_probs(base, tmp_path, case):
    folder = made(base, tmp_path / "theirs", **TAKEN_OVER[case])
    view = open_adapter(folder, base)
    assert_equal(base, view, folder)
    for name, write in {"checkpoint": write_adapter, "peft": export_peft}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, view, "some/base")
        assert torch.equal(open_adapter(tmp_path / "checkpoint", base).flat, view.flat)
        assert (peft_logprobs(base, tmp_path / name) - own_logprobs(base, view)).abs().max() <= 1e-4
    export(base, folder, tmp_path / "merged", "merged", "some/base")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        theirs = merged(torch.tensor([SEQUENCE])).logits[0].log_softmax(-1)
    assert (theirs - own_logprobs(base, view)).abs().max() <= 1e-4


REFUSALS = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "lora_bias": {"lora_bias": True},
    "init_lora_weights = 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
}


@pytest.mark.parametrize("named", REFUSALS)
def test_what_cannot_be_taken_over_is_refused_by_name(untied, tmp_path, named):
    folder = made(untied, tmp_path, r=4, target_modules=LISTED, **REFUSALS[named])
    with pytest.raises(BadRequest, match=named):
        open_adapter(folder, untied)


def configure(folder, **changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"init_lora_weights": "loftq"}, "loftq.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "of_tomorrow"}, "of_tomorrow"),
        ({"kasa_config": {}, "use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"of_tomorrow": 1}, "of_tomorrow = 1.*not known"),
        ({"of_tomorrow": 0}, "of_tomorrow = 0.*not known"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"alora_invocation_tokens": []}, "alora_invocation_tokens"),
        ({"r": 5}, "the rank is 5 there"),
        ({"r": "4"}, "wrong type"),
        ({"r": True}, "wrong type"),
        ({"lora_alpha": "x"}, "wrong type"),
        ({"lora_alpha": float("nan")}, "nan is no finite number"),
        ({"alpha_pattern": {"q_proj": 1e44}}, "infinite"),
        ({"use_rslora": "no"}, "'no' is neither true nor false"),
        ({"rank_pattern": ["q_proj"]}, "wrong type"),
        ({"alpha_pattern": {"(": 3}}, "wrong type"),
        ({"target_modules": "("}, "wrong type"),
        ({"target_modules": [3]}, "wrong type"),
        ({"target_modules": ["q_proj", "v_proj"]}, r"down_proj', which its target_modules do not name"),
        ({"target_modules": [*LISTED, "o_proj"]}, r"lacks the matrices of '.*o_proj'"),
    ],
    ids=str,
)
def test_configurations_that_mean_something_else_are_refused(untied, tmp_path, changes, named):
    folder = made(untied, tmp_path, r=4, target_modules=LISTED)
    configure(folder, **changes)
    with pytest.raises(BadRequest, match=named):
        open_adapter(folder, untied)


def test_settings_that_are_off_are_let_pass(untied, tmp_path):
    folder = made(untied, tmp_path, r=4, target_modules=LISTED)
    configure(folder, of_tomorrow=None, use_tomorrow=False, tomorrow_config={}, modules_to_save=[])
    assert_equal(untied, open_adapter(folder, untied), folder)


def test_every_setting_of_the_installed_peft_is_known():
    """A new one makes this fail: whether it changes what an adapter computes must be decided."""
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields <= OBEYED | WITHOUT_EFFECT | REFUSED.keys()
    assert not OBEYED & WITHOUT_EFFECT
    assert not (OBEYED | WITHOUT_EFFECT) & REFUSED.keys()


def test_an_embedding_that_was_trained_in_full_is_refused(untied, tmp_path):
    folder = made(untied, tmp_path, r=4, target_modules=["lm_head"])
    tensors = load_file(folder / WEIGHTS_FILE)
    assert any("base_layer" in name or "embed_tokens" in name for name in tensors)  # equal copies, which say nothing
    assert_equal(untied, open_adapter(folder, untied), folder)
    name = next(name for name in tensors if name.endswith("base_layer.weight"))
    tensors[name] = tensors[name] * (1 + 1e-4)  # less than a bf16 number can tell
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(BadRequest, match=r"changed 'lm_head\.weight'"):
        open_adapter(folder, untied)


def test_an_adapter_of_other_parts_is_refused(untied, tmp_path):
    folder = made(untied, tmp_path, r=4, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(BadRequest, match="embed_tokens"):
        open_adapter(folder, untied)


def test_an_adapter_of_another_base_is_refused_with_shapes(untied, tmp_path):
    folder = made(untied, tmp_path / "a", r=4, target_modules=LISTED)
    wider = make_tiny_model(tmp_path / "wider", hidden_size=96)
    with pytest.raises(BadRequest, match=r"another base: .*64\].*96\]"):
        open_adapter(folder, wider)


def test_what_is_not_trained_yet_can_be_trained_further(untied, tmp_path):
    view = open_adapter(made(untied, tmp_path, r=4, target_modules=["q_proj"], rank_pattern={"layers.0.*": 2}), untied)
    for key in view.layout.places:
        assert (view.a(*key) != 0).all()  # B has a gradient everywhere


@pytest.mark.numbers
def test_experts_that_peft_fuses_are_taken_over(moe, tmp_path):
    settings = {"r": 3, "lora_alpha": 9, "target_modules": ["q_proj"]}
    folder = made(moe, tmp_path, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], **settings)
    assert_equal(moe, open_adapter(folder, moe), folder)


@pytest.mark.numbers
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_our_export_of_experts_is_taken_over_with_its_rank(moe, tmp_path, form):
    layout = LoraLayout(read_spec(moe), LoraSpec(3, 5, experts=form))
    view = AdapterView(layout, init_flat(layout, 5) + 0.05 * torch.randn(layout.size))
    export_peft(tmp_path, view, "some/base")
    back = open_adapter(tmp_path, moe)
    assert back.layout.rank == 3
    assert_equal(moe, back, tmp_path)


@pytest.mark.numbers
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_our_export_of_experts_beside_dense_layers_is_taken_over(tmp_path, family):
    """Its dense projections are named among the parameters, not the modules."""
    base = make_tiny_model(tmp_path / "base", family)
    layout = LoraLayout(read_spec(base), LoraSpec(3, 5))
    view = AdapterView(layout, init_flat(layout, 5) + 0.05 * torch.randn(layout.size))
    (tmp_path / "out").mkdir()
    export_peft(tmp_path / "out", view, "some/base")
    assert_equal(base, open_adapter(tmp_path / "out", base), tmp_path / "out")


@pytest.mark.numbers
def test_patterns_for_a_parameter_count_for_it_alone(tmp_path):
    """peft looks `mlp.down_proj.weight` up, which the pattern of the module's name does not match."""
    base = make_tiny_model(tmp_path / "base", "qwen3_moe")
    targets = {"target_modules": ["o_proj"], "target_parameters": ["mlp.down_proj.weight", "mlp.experts.down_proj"]}
    patterns = {"rank_pattern": {"mlp.down_proj": 2, "o_proj": 3}, "alpha_pattern": {r"mlp\.down_proj\.weight": 5}}
    folder = made(base, tmp_path / "theirs", r=4, **targets, **patterns)
    assert_equal(base, open_adapter(folder, base), folder)


def test_stacked_experts_of_another_rank_than_told_are_refused(moe, tmp_path):
    layout = LoraLayout(read_spec(moe), LoraSpec(3, 5))
    write_adapter(tmp_path, AdapterView(layout, init_flat(layout, 5)), "some/base")
    configure(tmp_path, peft_type="LORA", loreloop=None, rank_pattern={"experts.w2": 2})  # as the hosted service has it
    with pytest.raises(BadRequest, match=r"experts\.w2.*the rank 2"):
        open_adapter(tmp_path, moe)


def test_peft_refuses_a_folder_with_stacked_experts(moe, tmp_path):
    layout = LoraLayout(read_spec(moe), LoraSpec(3, 5))
    write_adapter(tmp_path, AdapterView(layout, init_flat(layout, 5)), "some/base")
    with pytest.raises(KeyError, match="LORELOOP_STACKED_EXPERTS"):
        PeftModel.from_pretrained(published(moe), tmp_path)


@pytest.mark.slow
@pytest.mark.numbers
@pytest.mark.parametrize("case", ["patterns and rslora", "the unembedding", "pissa"])
def test_the_default_model_s_adapters_are_taken_over(tmp_path, case):
    from loreloop.config import Config
    from loreloop.formats.adding import ensure
    from loreloop.formats.catalog import Catalog

    base = ensure(Catalog(Config().data_path), "smollm2-135m").folder
    folder = made(base, tmp_path / "a", **TAKEN_OVER[case])
    assert_equal(base, open_adapter(folder, base), folder)
