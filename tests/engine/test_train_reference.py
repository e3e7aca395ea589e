"""Log-probs and gradients of the trainer against a plain transformers and peft model in fp32."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loreloop.engine.losses.table import LOSSES
from loreloop.engine.training.model_state import ModelState
from loreloop.formats.peft import named_tensors
from loreloop.model.lora import AdapterView
from tests.engine.train_rig import Rig, datum, policy_datum, random_tokens, relative_error, train_pass
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.numbers
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("llama", {}, False),
    "llama-untied-unembed": ("llama", {"tie_word_embeddings": False, "rope_scaling": LLAMA3_ROPE}, True),
    "qwen2": ("qwen2", {}, False),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}, True),
}
POLICY_LOSSES = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.5},
    "cispo": {"clip_high_threshold": 1.5},
    "dro": {"beta": 0.1},
    "stable_reinforce": {"kl_coeff": 0.1},
}


class Reference:
    """The same base with the same adapter, as peft has it."""

    def __init__(self, folder, state: ModelState) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.names = {self._name(name): name for name, _ in named_tensors(state.weights)}
        modules = sorted({name.split(".")[-4] for name in self.names})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = LoraConfig(r=state.layout.rank, lora_alpha=32, target_modules=modules, bias="none")
            self.model = get_peft_model(base, config)
        parameters = dict(self.model.named_parameters())
        for name, own in self.names.items():
            parameters[name].data.copy_(dict(named_tensors(state.weights))[own])

    @staticmethod
    def _name(own: str) -> str:
        return own.replace("model.model.unembed_tokens", "model.lm_head").replace(".weight", ".default.weight")

    def logprobs(self, data):
        tokens = torch.frombuffer(bytearray(data.chunks[0].tokens), dtype=torch.int32).long()
        targets = torch.tensor(data.inputs["target_tokens"].numpy())
        logp_NV = self.model(tokens[None]).logits[0].log_softmax(-1)
        return logp_NV.gather(1, targets.reshape(len(tokens), -1)).reshape(targets.shape)

    def gradients(self, loss):
        loss.backward()
        return {own: dict(self.model.named_parameters())[name].grad for name, own in self.names.items()}


def named_gradients(state: ModelState):
    return dict(named_tensors(AdapterView(state.layout, state.grad)))


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory):
    family, settings, unembed = CASES[request.param]
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), family, **settings)
    rig = Rig(folder)
    state = rig.state(rank=4, unembed=unembed)
    return rig, state, Reference(folder, state)


@pytest.fixture(autouse=True)
def clean(case):
    case[1].clear_grad()
    case[2].model.zero_grad()


def test_cross_entropy_equals_peft(case):
    rig, state, reference = case
    tokens = random_tokens(40)
    data = [datum(tokens), datum(tokens[:20] + random_tokens(15, 1), weights=torch.randn(35))]
    logps = rig.run((state, train_pass(*data)))[0]
    expected = [reference.logprobs(d) for d in data]
    for own, theirs in zip(logps, expected, strict=True):
        assert (own - theirs).abs().max() <= 1e-4
    loss = -sum((torch.tensor(d.inputs["weights"].numpy()) * lp).sum() for d, lp in zip(data, expected, strict=True))
    own = named_gradients(state)
    for name, theirs in reference.gradients(loss).items():
        assert relative_error(own[name], theirs) <= 1e-4, name


def test_several_targets_a_position_equal_peft(case):
    rig, state, reference = case
    targets = torch.randint(0, 512, (30, 3))
    data = datum(random_tokens(30), targets, weights=torch.randn(30, 3))
    logp = rig.run((state, train_pass(data)))[0][0]
    expected = reference.logprobs(data)
    assert (logp - expected).abs().max() <= 1e-4
    own = named_gradients(state)
    for name, theirs in reference.gradients(-(torch.tensor(data.inputs["weights"].numpy()) * expected).sum()).items():
        assert relative_error(own[name], theirs) <= 1e-4, name


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_policy_losses_equal_autograd_through_the_whole_model(case, loss):
    rig, state, reference = case
    data = policy_datum(random_tokens(30))
    rig.run((state, train_pass(data, loss=loss, config=POLICY_LOSSES[loss])))
    inputs = {name: torch.tensor(tensor.numpy()) for name, tensor in data.inputs.items()}
    config = {**LOSSES[loss].config, **POLICY_LOSSES[loss]}
    theirs = reference.gradients(LOSSES[loss](reference.logprobs(data), inputs, config))
    own = torch.cat([t.flatten() for t in named_gradients(state).values()])
    assert relative_error(own, torch.cat([t.flatten() for t in theirs.values()])) <= 1e-4
