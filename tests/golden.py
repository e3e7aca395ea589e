"""The golden run: a tiny model, seeded, is trained, saved, sampled, resumed and sampled again; its numbers are kept.

`python -m tests.golden` writes them anew into golden.json (`make golden`), which is right only where a change was meant
to move numbers: say in the commit which, and why. Weights come from numpy's legacy generator, whose numbers are frozen.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from loreloop.config import EngineConfig
from loreloop.engine.contract import PromptEvent, TokenEvent
from loreloop.engine.local import LocalEngine
from loreloop.protocol.sampling import PromptScores, Revision, SampleOp, SamplingParams
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    Datum,
    ForwardBackward,
    LoraSpec,
    OptimStep,
    PassResult,
    SaveSampler,
    SaveState,
    TextChunk,
)

FILE = Path(__file__).with_suffix(".json")
WIDTH, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 64, 96, 2, 4, 2, 256
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


ADAM = AdamParams(learning_rate=2e-3, beta2=0.95, eps=1e-3, weight_decay=1.0, grad_clip_norm=5.0)


@dataclass(frozen=True)
class Recipe:
    """What the run is made with. A test changes one value and expects the numbers to show it."""

    adam: AdamParams = ADAM
    clip_high: float = 1.2
    temperature: float = 0.8
    sample_seed: int = 7
    rope_theta: float = 10000.0
    lora_seed: int = 3


Numbers = dict[str, list[float]]


def golden_run(recipe: Recipe | None = None) -> Numbers:
    """All numbers of one run in fp32 with one thread."""
    recipe = recipe or Recipe()
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model", recipe)
        first = _Run(folder, recipe, "first")
        first.engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, recipe.lora_seed)))
        first.train(0, 6)
        first.save()
        first.sample("after training")
        second = _Run(folder, recipe, "second")
        second.engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0), str(folder / "state"), True))
        second.sample("after the restart")
        second.train(6, 10)
        second.save()
        second.sample("after resuming")
        return first.numbers | second.numbers


class _Run:
    """One engine, and the numbers that it gave."""

    def __init__(self, folder: Path, recipe: Recipe, name: str) -> None:
        config = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1)
        self.engine = LocalEngine(config, "golden", folder / "model", folder / name)
        self.folder, self.recipe, self.name, self.numbers = folder, recipe, name, Numbers()

    def train(self, start: int, stop: int) -> None:
        losses, lengths = [], []
        for step in range(start, stop):
            (result,) = self.engine.train([_lesson(step, self.recipe)], lambda: None)
            assert isinstance(result, PassResult), result
            metrics = self.engine.optim_step(OptimStep("m", step, "r", self.recipe.adam)).metrics
            losses.append(result.metrics["loss:sum"])
            lengths.append(metrics["unclipped_grad_l2:mean"])
            lengths.append(metrics["update_l2:mean"])
        self.numbers[f"{self.name}: losses"] = losses
        self.numbers[f"{self.name}: lengths of gradients and updates"] = lengths

    def save(self) -> None:
        self.engine.save_state(SaveState("m", 98, "r", str(self.folder / "state")))
        self.engine.save_sampler(SaveSampler("m", 99, "r", str(self.folder / "adapter"), self.name))

    def sample(self, when: str) -> None:
        """Two samples and the prompt's scores, of the adapter that was saved last, whichever engine saved it."""
        params = SamplingParams(12, self.recipe.sample_seed, temperature=self.recipe.temperature, top_p=0.95)
        revision = Revision(self.name if "restart" not in when else "first", str(self.folder / "adapter"))
        prompt = (TextChunk(_tokens(50, 9).tobytes()),)
        op = SampleOp("s", "owner", revision, prompt, 2, params, PromptScores(logprobs=True))
        assert self.engine.admit(op)
        tokens: dict[int, list[float]] = {0: [], 1: []}
        logprobs: dict[int, list[float]] = {0: [], 1: []}
        while self.engine.sampling:
            for event in self.engine.sample_step():
                assert isinstance(event, PromptEvent | TokenEvent), event
                if isinstance(event, PromptEvent):
                    scores = np.frombuffer(event.report.logprobs or b"", "<f4")
                    self.numbers[f"{when}: scores of the prompt"] = [float(score) for score in scores[1:]]
                else:
                    tokens[event.sample_index].append(event.token)
                    logprobs[event.sample_index].append(event.logprob)
        self.numbers[f"{when}: tokens"] = tokens[0] + tokens[1]
        self.numbers[f"{when}: log-probs"] = logprobs[0] + logprobs[1]


def _lesson(step: int, recipe: Recipe) -> ForwardBackward:
    """Even steps learn three texts, odd ones improve a policy; the data of a kind are always the same."""
    if step % 2 == 0:
        data = tuple(_datum(i, weights=np.linspace(0.5, 1.5, 16)) for i in range(3))
        return ForwardBackward("m", step, "r", data, "cross_entropy", {})
    data = tuple(
        _datum(10 + i, logprobs=np.linspace(-7, -4, 16), advantages=np.cos(np.arange(16) + i)) for i in range(3)
    )
    return ForwardBackward("m", step, "r", data, "ppo", {"clip_high_threshold": recipe.clip_high})


def _datum(seed: int, **inputs: Any) -> Datum:
    tokens = _tokens(seed, 17)
    tensors = {name: tensor_of(np.asarray(values, np.float32)) for name, values in inputs.items()}
    targets = tensor_of(tokens[1:].astype(np.int64))
    return Datum((TextChunk(tokens[:-1].tobytes()),), {"target_tokens": targets, **tensors})


def _tokens(seed: int, n: int) -> Any:
    return np.random.RandomState(seed).randint(2, VOCAB, n).astype("<i4")


def _write_model(folder: Path, recipe: Recipe) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": recipe.rope_theta}))
    random = np.random.RandomState(0)
    save_file({name: _weight(random, shape) for name, shape in _shapes().items()}, folder / "model.safetensors")


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        outs = {"q": (HEADS * 16, WIDTH), "k": (KV_HEADS * 16, WIDTH), "v": (KV_HEADS * 16, WIDTH)}
        parts = {f"self_attn.{name}_proj": shape for name, shape in outs.items()}
        parts |= {"self_attn.o_proj": (WIDTH, HEADS * 16), "self_attn.q_norm": (16,), "self_attn.k_norm": (16,)}
        parts |= {"mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
        parts |= {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return shapes


def _weight(random: np.random.RandomState, shape: tuple[int, ...]) -> Any:
    noise = random.standard_normal(shape)
    return (1 + 0.1 * noise if len(shape) == 1 else 0.2 * noise).astype(np.float32)


def differences(numbers: Numbers, golden: Numbers) -> dict[str, float]:
    """By name, the largest difference of a list's numbers, relative to the golden one (0.1 where that is smaller)."""
    assert numbers.keys() == golden.keys()
    return {name: _largest(numbers[name], golden[name]) for name in golden}


def _largest(values: list[float], golden: list[float]) -> float:
    pairs = zip(values, golden, strict=True)
    return max(abs(value - wanted) / max(0.1, abs(wanted)) for value, wanted in pairs)


if __name__ == "__main__":
    text = json.dumps(golden_run(), indent=1) + "\n"
    if "--print" in sys.argv:
        print(text)
    else:
        FILE.write_text(text)
        print(f"{FILE} is written; `git diff` shows what moved.")
