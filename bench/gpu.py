"""`python -m bench.gpu`: one engine on a GPU, random weights in the shape of Qwen3-8B, against the device's own limits;
before it, experts in 4 bits at Kimi K2's dimensions (`bench.gpu_int4`).

Prints each figure with the bound that the project set for it. `--tiny` runs the same on a small shape, on any device,
to see that the script works (with TRITON_INTERPRET=1 the kernels for experts too). `--only int4` leaves the engine out,
and `--tiles` times every tile of the kernels. Needs 16 GB of disk for the weights and about 70 GB of device memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.gpu_int4 import int4_figures, tile_times
from bench.rig import Figure, datum, decode_steps, new_model, random_ids, run_pass, sample_op, saved_revision, timed
from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.kernels.sheets import serve
from loreloop.model.tensor_file import write_tensors

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": False,
    "eos_token_id": 151_645,
}
TINY = QWEN3_8B | {
    "vocab_size": 49_152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def write_model(folder: Path, config: dict[str, object], device: str) -> int:
    """Random weights, a file a layer; gives the number of parameters that multiply every token."""
    (folder / "config.json").write_text(json.dumps(config))
    d, ff, vocab = (int(str(config[name])) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, groups, width = (
        int(str(config[name])) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    n_parameters = 0

    def random(*shape: int) -> torch.Tensor:
        nonlocal n_parameters
        n_parameters += shape[0] * shape[1]
        return (0.02 * torch.randn(*shape, device=device)).bfloat16().cpu()

    for layer in range(int(str(config["num_hidden_layers"]))):
        at = f"model.layers.{layer}."
        weights = {
            "self_attn.q_proj": random(heads * width, d),
            "self_attn.k_proj": random(groups * width, d),
            "self_attn.v_proj": random(groups * width, d),
            "self_attn.o_proj": random(d, heads * width),
            "mlp.gate_proj": random(ff, d),
            "mlp.up_proj": random(ff, d),
            "mlp.down_proj": random(d, ff),
        }
        for name, size in (("input_layernorm", d), ("post_attention_layernorm", d)):
            weights[name] = torch.ones(size).bfloat16()
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            weights[name] = torch.ones(width).bfloat16()
        named = {f"{at}{name}.weight": tensor for name, tensor in weights.items()}
        write_tensors(folder / f"layer-{layer:03}.safetensors", named)
    ends = {"model.embed_tokens.weight": random(vocab, d), "lm_head.weight": random(vocab, d)}
    n_parameters -= vocab * d  # the embedding is looked up
    write_tensors(folder / "ends.safetensors", ends | {"model.norm.weight": torch.ones(d).bfloat16()})
    return n_parameters


def seconds_of(work: Callable[[], object], device: str, turns: int = 5) -> float:
    """Median, after one turn that warms up."""

    def finished() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return float(np.median([timed(finished) for _ in range(turns + 1)][1:]))


def limits(device: str, n: int) -> tuple[float, float]:
    """Measured: bf16 products in FLOP/s at n x n x n, memory in bytes/s of a copy (read and written)."""
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in "ab")
    flops = 2 * n**3 / seconds_of(lambda: a @ b, device)
    big = torch.empty(n * n, device=device)
    return flops, 2 * 4 * n * n / seconds_of(big.clone, device)


def engine_figures(flops: float, bandwidth: float, device: str, *, tiny: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        folder.mkdir()
        n_parameters = write_model(folder, TINY if tiny else QWEN3_8B, device)
        cache_mib = 64 if tiny else 40_960
        config = EngineConfig(
            kv_cache_mib=cache_mib, train_tokens=512 if tiny else 8192, prefill_tokens=4096, resident_revisions=64
        )
        running = LocalEngine(config, "random", folder, Path(work, "models"))
        return figures(running, n_parameters, (flops, bandwidth), device, tiny=tiny)


def figures(
    running: LocalEngine, n_parameters: int, limits: tuple[float, float], device: str, *, tiny: bool
) -> list[Figure]:
    flops, bandwidth = limits
    rng = np.random.default_rng(0)
    n_sequences, n_tokens = (2, 64) if tiny else (8, 2048)
    new_model(running)
    data = [datum(random_ids(rng, n_tokens)) for _ in range(n_sequences)]
    seconds = seconds_of(lambda: run_pass(running, data), device, 3)
    trained = 4 * n_parameters * n_sequences * n_tokens / seconds  # forward and input gradient; no base gradient
    running.drop_model("m")
    n_rows, context = (4, 32) if tiny else (256, 1024)
    n_adapters = 2 if tiny else 64
    revisions = [saved_revision(running, f"r{number}", 8) for number in range(n_adapters)]

    def step(n: int) -> float:
        prompts = [random_ids(rng, context) for _ in range(n_rows)]
        ops = [sample_op(str(i), prompt, revisions[i % n], 16, seed=i) for i, prompt in enumerate(prompts)]
        return float(np.median(decode_steps(running, ops)))

    one, many = step(1), step(n_adapters)
    spec = running.decoder.spec
    n_bytes = 2 * n_parameters + n_rows * context * 2 * spec.n_layers * spec.d_kv * 2
    return [
        Figure("LoRA training over the product rate", trained / flops, "x", at_least=0.45),
        Figure(f"decoding {n_rows} rows at {context} over memory", n_bytes / one / bandwidth, "x", at_least=0.6),
        Figure(f"{n_adapters} adapters of rank 8 over one", one / many, "x", at_least=0.8),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--only", choices=["int4", "engine"])
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("there is no GPU here; --tiny runs the script on a small shape")
    name = torch.cuda.get_device_name() if device == "cuda" else "a CPU, the tiny shape"
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    flops, bandwidth = limits(device, 512 if args.tiny else 8192)
    show([Figure("bf16 products", flops / 1e12, "TFLOP/s"), Figure("memory", bandwidth / 1e9, "GB/s")])
    if args.only != "engine":
        experts(flops, bandwidth, device, tiny=args.tiny, tiles=args.tiles)
    if args.only != "int4":
        show(engine_figures(flops, bandwidth, device, tiny=args.tiny))


def experts(flops: float, bandwidth: float, device: str, *, tiny: bool, tiles: bool) -> None:
    if not serve(torch.device(device)):
        print("int4 experts: not measured, there is no GPU here")
        return
    show(int4_figures(flops, bandwidth, device, tiny=tiny))
    if tiles:
        print("\n".join(tile_times(device, tiny=tiny)))


def show(figures: list[Figure]) -> None:
    for figure in figures:
        wanted = f" (at least {figure.at_least}: {'met' if figure.met else 'NOT MET'})" if figure.at_least else ""
        print(f"{figure.name}: {figure.value:.4g} {figure.unit}{wanted}", flush=True)


if __name__ == "__main__":
    main()
