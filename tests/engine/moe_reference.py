"""The same base with the same adapter as transformers computes it, adapters of experts written out as ΔW."""

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from loreloop.engine.training.model_state import ModelState
from loreloop.formats.peft import named_tensors
from loreloop.model.lora import AdapterView


class DeltaReference:
    """Every ΔW = 32/r · B · A is added to its weight in front of autograd's eyes."""

    auto = AutoModelForCausalLM

    def __init__(self, folder, state: ModelState) -> None:
        # Step by step, since fused attention leaves out caps on scores.
        self.model = self.auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.scale = 32 / state.layout.rank
        view = AdapterView(state.layout, state.weights.flat.float())
        self.leaves = {name: t.detach().clone().requires_grad_() for name, t in named_tensors(view)}

    def weights(self):
        weights = dict(self.model.named_parameters())
        for name, a in self.leaves.items():
            if name.endswith("lora_A.weight"):
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                module = module.replace("model.unembed_tokens", "lm_head")
                delta = self.scale * self.leaves[name.replace("lora_A", "lora_B")] @ a
                if ".experts." not in module:
                    weights[f"{module}.weight"] = weights[f"{module}.weight"] + delta
                    continue
                experts, part = module.rsplit(".", 1)
                if f"{experts}.gate_up_proj_bias" in weights:  # gpt-oss: inputs first, gates and ups by turns
                    name = f"{experts}.{'down' if part == 'w2' else 'gate_up'}_proj"
                    delta = delta.transpose(1, 2).expand(len(weights[name]), -1, -1)
                    if part != "w2":
                        zero = torch.zeros_like(delta)
                        delta = torch.stack((delta, zero) if part == "w1" else (zero, delta), -1).flatten(-2)
                    weights[name] = weights[name] + delta
                    continue
                if part == "w2":
                    weights[f"{experts}.down_proj"] = weights[f"{experts}.down_proj"] + delta
                else:
                    whole = weights[f"{experts}.gate_up_proj"]
                    zero = torch.zeros_like(whole[:, : delta.shape[1]])
                    both = (delta.expand_as(zero), zero) if part == "w1" else (zero, delta.expand_as(zero))
                    weights[f"{experts}.gate_up_proj"] = whole + torch.cat(both, 1)
        return weights

    def logprobs(self, datum):
        tokens = torch.frombuffer(bytearray(datum.chunks[0].tokens), dtype=torch.int32).long()
        targets = torch.tensor(datum.inputs["target_tokens"].numpy())
        logp_TV = functional_call(self.model, self.weights(), (tokens[None],)).logits[0].log_softmax(-1)
        return logp_TV.gather(1, targets[:, None])[:, 0]

    def gradients(self, loss):
        return dict(zip(self.leaves, torch.autograd.grad(loss, list(self.leaves.values())), strict=True))


def named_gradients(state: ModelState):
    return dict(named_tensors(AdapterView(state.layout, state.grad)))
