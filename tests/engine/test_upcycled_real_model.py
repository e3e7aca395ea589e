"""The default model made into one of experts that differ: real weights through loading, sampling, replay and export."""

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from loreloop.config import Config, EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.formats.adding import ensure
from loreloop.formats.catalog import Catalog
from loreloop.formats.configuration import read_spec
from loreloop.formats.export import export
from loreloop.formats.peft import write_adapter
from loreloop.formats.upcycle import Upcycling, upcycle
from loreloop.model.lora import AdapterView, LoraBatch, LoraGroup, LoraLayout
from loreloop.protocol.training import CreateModel, LoraSpec, SaveSampler
from tests.engine.sample_rig import Answer, folder_revision, sample_op
from tests.engine.train_rig import datum, train_pass
from tests.model.plain import hidden, load, logprobs

pytestmark = pytest.mark.slow
TEXT = "The lighthouse was built when ships still sailed by the stars. Its keeper wrote in the book every evening:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model") / "moe"
    made.mkdir()
    dense = ensure(Catalog(Config().data_path), "smollm2-135m").folder
    upcycle(dense, made, Upcycling(noise=0.05, skew=4.0, seed=1))
    return made


@pytest.fixture(scope="module")
def sequence(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids


def published_logprobs(folder, sequence):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].log_softmax(-1)


def test_it_equals_transformers_and_two_experts_swapped_are_another_model(folder, sequence):
    decoder = load(folder)
    before = logprobs(decoder, [sequence])
    assert (before - published_logprobs(folder, sequence)).abs().max() <= 1e-4
    for layer in decoder.layers:
        experts = layer.feed_forward.experts
        experts[0], experts[1] = experts[1], experts[0]
    assert (before - logprobs(decoder, [sequence])).abs().max() > 0.1


def test_the_trainer_gives_the_samplers_numbers_and_follows_its_routes(folder, sequence, tmp_path):
    engine = LocalEngine(EngineConfig(device="cpu"), "moe", folder, tmp_path / "work")
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(16, 0, train_unembed=False)))
    state = engine.bank.get("m")
    disturb(state, 0)
    engine.save_sampler(SaveSampler("m", 1, "r", str(tmp_path / "v"), "v"))
    answer = Answer()
    op = sample_op(sequence, n=8, max_tokens=64, routes=True, revision=folder_revision("v", tmp_path / "v"))
    assert engine.admit(op)
    while engine.sampling:
        for event in engine.sample_step():
            answer.add(event)
    whole = [[*sequence, *answer.tokens[i]] for i in range(8)]
    data = [
        msgspec.structs.replace(datum(tokens[:-1], tokens[1:]), routes=answer.routes[i])
        for i, tokens in enumerate(whole)
    ]
    same = trained(engine, data)
    assert same.metrics["e_recorded:sum"] > 0
    assert same.metrics["e_out_of_route:sum"] == 0
    logps = [torch.tensor(output["logprobs"].numpy()[len(sequence) - 1 :]) for output in same.outputs]
    delta = torch.cat(logps) - torch.cat([torch.tensor(answer.logprobs[i]) for i in range(8)])
    assert delta.abs().mean() <= 1e-3

    disturb(state, 1)  # as optimizer steps would; the router now wants other experts
    moved = trained(engine, data)
    assert moved.metrics["e_router_moved:sum"] > 0
    assert moved.metrics["e_out_of_route:sum"] == 0
    engine.trainer.replay_routes = False
    assert trained(engine, data).metrics["e_out_of_route:sum"] > 0


def disturb(state, seed):
    state.master.add_(torch.randn(state.master.shape, generator=torch.Generator().manual_seed(seed)), alpha=2e-3)
    state.refresh_weights()


def trained(engine, data):
    return engine.train([train_pass(*data, forward_only=True)], lambda: None)[0]


def test_merged_it_is_the_model_with_its_adapter(folder, sequence, tmp_path):
    layout = LoraLayout(read_spec(folder), LoraSpec(8, 7, train_unembed=False))
    flat = 0.03 * torch.randn(layout.size, generator=torch.Generator().manual_seed(7))
    view = AdapterView(layout, flat)
    (tmp_path / "a").mkdir()
    write_adapter(tmp_path / "a", view, "moe")
    with torch.no_grad():
        decoder, lora = load(folder), LoraBatch([LoraGroup(0, len(sequence), view)])
        own = decoder.head.forward(hidden(decoder, [sequence], lora)).float().log_softmax(-1)
        bare = logprobs(decoder, [sequence])
    assert (own - bare).abs().max() > 0.1
    export(folder, tmp_path / "a", tmp_path / "out", "merged", "moe")
    merged = published_logprobs(tmp_path / "out", sequence)
    assert (own - merged).abs().mean() <= 0.05 * (own - bare).abs().mean()  # what it adds is rounded to bf16
