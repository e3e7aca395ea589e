"""Sampler against trainer over ten thousand tokens of the default model, as it is served."""

import pytest
import torch
from tokenizers import Tokenizer

from loreloop.config import Config, EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.kernels import bf16_products
from loreloop.protocol.training import CreateModel, LoraSpec, SaveSampler
from tests.engine.sample_rig import Answer, folder_revision, sample_op
from tests.engine.train_rig import datum, train_pass

pytestmark = pytest.mark.slow
# With products and attention of our own a row's result depends on that row alone. The library's depends on the number
# of rows, of which sampling has few and training many, and on the number of threads.
HAS_OWN_PRODUCTS = bf16_products.supports(torch.empty(0, dtype=torch.bfloat16))
TEXT = "The lighthouse was built when ships still sailed by the stars. Its keeper wrote in the book every evening:"


def deltas(work_dir, precision, n_samples, n_tokens, quantize="none", threads_of_training=2):
    """Trainer's log-probs less the sampler's, over all sampled tokens of a model with a noticeable adapter."""
    folder = ensure(Catalog(Config().data_path), "smollm2-135m", blocks=True).folder
    # A number of threads that is given stays. Otherwise it follows the machine's load, and with it the order in which
    # the library adds up.
    config = EngineConfig(device="cpu", precision=precision, quantize=quantize, threads=2)
    engine = LocalEngine(config, "smollm2-135m", folder, work_dir / "work")
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(16, 0, train_unembed=False)))
    state = engine.bank.get("m")
    state.master.add_(torch.randn(state.master.shape, generator=torch.Generator().manual_seed(0)), alpha=2e-3)
    state.refresh_weights()
    engine.save_sampler(SaveSampler("m", 1, "r", str(work_dir / "v"), "v"))
    prompt, answer = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids, Answer()
    op = sample_op(prompt, n=n_samples, max_tokens=n_tokens, revision=folder_revision("v", work_dir / "v"))
    assert engine.admit(op)
    while engine.sampling:
        for event in engine.sample_step():
            answer.add(event)
    data = [datum(prompt + answer.tokens[i]) for i in range(n_samples)]
    torch.set_num_threads(threads_of_training)
    outputs = results(engine, train_pass(*data, forward_only=True))
    trained = torch.cat([torch.tensor(o["logprobs"].numpy()[len(prompt) - 1 : -1]) for o in outputs])
    return trained - torch.cat([torch.tensor(answer.logprobs[i]) for i in range(n_samples)])


def results(engine, op):
    return engine.train([op], lambda: None)[0].outputs


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_in_bf16_they_stay_close(tmp_path, quantize):
    delta = deltas(tmp_path, "bf16", n_samples=64, n_tokens=160, quantize=quantize)
    assert delta.numel() > 10_000
    if HAS_OWN_PRODUCTS:
        assert delta.abs().max() == 0
    assert delta.abs().mean() <= 0.01
    assert (delta.exp() - 1 - delta).mean() <= 2e-4  # an estimate of the KL divergence that cannot be negative


def test_in_bf16_another_number_of_threads_costs_little(tmp_path):
    """As happens where the number follows the machine's load and changes between sampling and training."""
    delta = deltas(tmp_path, "bf16", n_samples=16, n_tokens=60, threads_of_training=1)
    if HAS_OWN_PRODUCTS:
        assert delta.abs().max() == 0
    assert delta.abs().mean() <= 0.05
    assert (delta.exp() - 1 - delta).mean() <= 2e-3


def test_in_fp32_they_are_equal(tmp_path):
    assert deltas(tmp_path, "fp32", n_samples=16, n_tokens=40).abs().max() <= 1e-4
