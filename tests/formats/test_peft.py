"""Adapter folders: peft reads ours, we read peft's, and what does not fit is refused with names and shapes."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loreloop.formats.adopt import open_adapter
from loreloop.formats.configuration import read_spec
from loreloop.formats.peft import CONFIG_FILE, WEIGHTS_FILE, named_tensors, read_adapter, read_lora_spec, write_adapter
from loreloop.model.lora import AdapterView, LoraBatch, LoraGroup, LoraLayout
from loreloop.protocol.checksums import sum_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import LoraSpec
from tests.model.plain import load, logprobs, relative_error, tokens
from tests.tiny import make_tiny_model

PARTS = [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
FAMILIES = ["llama", "qwen2", "qwen3"]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), request.param, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def random_view(folder, rank=3, seed=7, *, attn=True, mlp=True, unembed=False):
    layout = LoraLayout(read_spec(folder), LoraSpec(rank, seed, attn, mlp, unembed))
    return AdapterView(layout, 0.05 * torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)))


def written(folder, view):
    folder.mkdir(exist_ok=True)
    write_adapter(folder, view, "some/base")
    return folder


def own_logprobs(base, view, sequence):
    return logprobs(load(base), [sequence], LoraBatch([LoraGroup(0, len(sequence), view)]))


def peft_logprobs(model, sequence):
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].log_softmax(-1)


def configure(folder, **changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.numbers
@pytest.mark.parametrize(("attn", "mlp"), [(True, True), (True, False), (False, True)])
def test_peft_reads_our_folder_and_gives_the_same_log_probs(base, tmp_path, attn, mlp):
    view, sequence = random_view(base, attn=attn, mlp=mlp), tokens(40)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unexpected keyword arguments")  # our own note in the configuration
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), written(tmp_path, view))
    assert (own_logprobs(base, view, sequence) - peft_logprobs(model, sequence)).abs().max() <= 1e-4


@pytest.mark.numbers
def test_we_read_peft_s_folder_with_some_projections_and_give_the_same_log_probs(base, tmp_path):
    modules = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=32, target_modules=modules, init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path)
    view, sequence = open_adapter(tmp_path, base), tokens(40)
    assert (own_logprobs(base, view, sequence) - peft_logprobs(model, sequence)).abs().max() <= 1e-4


@pytest.mark.numbers
def test_gradients_equal_peft_s(base, tmp_path):
    view, sequence, targets = random_view(base), tokens(40), tokens(40, 1)
    grad = AdapterView(view.layout, torch.zeros(view.layout.size))
    logp = logprobs(load(base), [sequence], LoraBatch([LoraGroup(0, 40, view, grad)]))
    logp[range(40), targets].sum().backward()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unexpected keyword arguments")
        folder = written(tmp_path, view)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder, is_trainable=True)
    model(torch.tensor([sequence])).logits[0].log_softmax(-1)[range(40), targets].sum().backward()
    theirs = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if "lora_" in name}
    for name, own in named_tensors(grad):
        assert relative_error(own, theirs[name]) <= 1e-4, name


@pytest.mark.parametrize(("attn", "mlp", "unembed"), PARTS)
def test_what_is_written_is_read_back(llama, tmp_path, attn, mlp, unembed):
    view = random_view(llama, attn=attn, mlp=mlp, unembed=unembed)
    read = read_adapter(written(tmp_path, view), read_spec(llama), torch.float32)
    assert read.layout.lora == view.layout.lora
    assert torch.equal(read.flat, view.flat)


def test_an_adapter_is_read_in_the_dtype_that_is_asked_for(llama, tmp_path):
    view = random_view(llama)
    assert torch.equal(
        read_adapter(written(tmp_path, view), read_spec(llama), torch.bfloat16).flat, view.flat.bfloat16()
    )


def test_names_scale_and_size_are_the_published_ones(llama, tmp_path):
    view = random_view(llama, unembed=True)
    sums = write_adapter(tmp_path, view, "some/base")
    config, tensors = json.loads((tmp_path / CONFIG_FILE).read_text()), load_file(tmp_path / WEIGHTS_FILE)
    assert sums == {name: sum_of(tmp_path / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    assert (config["lora_alpha"], config["r"], config["base_model_name_or_path"]) == (32, 3, "some/base")
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"].shape == (32, 3)
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape == (3, 128)
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (512, 3)
    assert sum(t.numel() for t in tensors.values()) == view.layout.size


@pytest.mark.parametrize("own", [True, False])
def test_an_unembedding_under_the_hosted_service_s_name_is_taken(llama, tmp_path, own):
    """Our own folders called it so as well, once."""
    view = random_view(llama, attn=False, mlp=False, unembed=True)
    written(tmp_path, view)
    renamed = {name.replace("lm_head", "model.unembed_tokens"): t.clone() for name, t in named_tensors(view)}
    save_file(renamed, tmp_path / WEIGHTS_FILE)
    if not own:
        settings = {"r": 3, "lora_alpha": 32, "target_modules": ["unembed_tokens"]}
        (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
    assert torch.equal(open_adapter(tmp_path, llama).flat, view.flat)


def test_an_adapter_of_another_base_is_refused_with_name_and_shapes(llama, tmp_path):
    wider = make_tiny_model(tmp_path / "wider", hidden_size=96)
    folder = written(tmp_path / "adapter", random_view(wider))
    with pytest.raises(BadRequest, match=r"another base: '.*lora_.\.weight' has the shape \[.*96.*\[.*64"):
        read_adapter(folder, read_spec(llama), torch.float32)


def test_an_adapter_of_a_deeper_base_is_refused_by_name(llama, tmp_path):
    deeper = make_tiny_model(tmp_path / "deeper", num_hidden_layers=3)
    folder = written(tmp_path / "adapter", random_view(deeper))
    with pytest.raises(BadRequest, match=r"layers\.2\."):
        read_adapter(folder, read_spec(llama), torch.float32)


def test_another_alpha_is_refused(llama, tmp_path):
    folder = written(tmp_path, random_view(llama))
    configure(folder, lora_alpha=16)
    with pytest.raises(BadRequest, match="lora_alpha = 16"):
        read_lora_spec(folder)


def test_a_rank_that_contradicts_the_tensors_is_refused(llama, tmp_path):
    folder = written(tmp_path, random_view(llama))
    configure(folder, r=5)
    with pytest.raises(BadRequest, match="shape"):
        read_adapter(folder, read_spec(llama), torch.float32)


@pytest.mark.parametrize(
    ("family", "part"),
    [("deepseek_v3", "q_a_proj"), ("deepseek_v3", "kv_a_proj_with_mqa"), ("mixtral", ".mlp.experts.")],
)
@pytest.mark.parametrize("form", ["shared_outer", "per_expert"])
def test_another_tool_s_adapter_of_some_parts_is_read(tmp_path, family, part, form):
    base = make_tiny_model(tmp_path / "base", family)
    spec = read_spec(base)
    layout = LoraLayout(spec, LoraSpec(3, 0, train_unembed=False, experts=form))
    view = AdapterView(layout, torch.randn(layout.size, generator=torch.Generator().manual_seed(1)))
    own = {name: tensor.clone() for name, tensor in named_tensors(view) if part in name}
    save_file(own, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"r": 3, "lora_alpha": 32, "target_modules": [part]}))
    read = dict(named_tensors(open_adapter(tmp_path, base)))
    assert all(torch.equal(read[name], tensor) for name, tensor in own.items())
    assert not any(bool(tensor.any()) for name, tensor in read.items() if name not in own and "lora_B" in name)


@pytest.mark.parametrize(
    "change",
    [
        {"r": "3"},
        {"r": None},
        {"r": 0},
        {"loreloop": [1]},
        {"loreloop": "x"},
        {"loreloop": {"seed": "x"}},
        {"loreloop": {"seed": 0, "train_mlp": "no"}},
        {"loreloop": {"seed": 0, "experts": "banana"}},
    ],
    ids=str,
)
def test_configurations_of_other_types_are_refused(llama, tmp_path, change):
    folder = written(tmp_path, random_view(llama))
    configure(folder, **change)
    with pytest.raises(BadRequest):
        read_adapter(folder, read_spec(llama), torch.float32)


def test_what_changes_nothing_or_is_no_object_is_no_adapter(llama, tmp_path):
    save_file({}, tmp_path / WEIGHTS_FILE)
    for text in ("[1]", "5", '{"r": 3, "lora_alpha": 32}'):
        (tmp_path / CONFIG_FILE).write_text(text)
        with pytest.raises(BadRequest, match=r"no JSON object|changes neither"):
            open_adapter(tmp_path, llama)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_that_lacks_a_file_is_refused(llama, tmp_path, file):
    folder = written(tmp_path, random_view(llama))
    (folder / file).unlink()
    with pytest.raises(BadRequest, match="cannot be read"):
        read_adapter(folder, read_spec(llama), torch.float32)
