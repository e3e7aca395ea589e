"""Sampling through the engine's contract: revisions, room, ends, and training at the same time."""

import shutil
from collections import defaultdict

import pytest
import torch

from loreloop.config import EngineConfig
from loreloop.engine.local import LocalEngine
from loreloop.protocol.sampling import PromptScores
from loreloop.protocol.training import AdamParams, CreateModel, LoraSpec, OptimStep, SaveSampler
from tests.engine.sample_rig import Answer, floats, folder_revision, sample_op
from tests.engine.train_rig import datum, random_tokens, train_pass
from tests.tiny import make_tiny_model

PROMPT = random_tokens(25)
SCORED = PromptScores(logprobs=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_engine(folder, tmp_path):
    """Engines over one base, exact unless told otherwise; each has its own place for spilled models."""
    n_engines = iter(range(99))

    def make(**settings):
        settings = {"deterministic": True, "precision": "fp32", "kv_cache_mib": 1} | settings
        config = EngineConfig(device="cpu", threads=1, **settings)
        return LocalEngine(config, "tiny", folder, tmp_path / f"work{next(n_engines)}")

    return make


def drain(engine, answers=None):
    answers = defaultdict(Answer) if answers is None else answers
    while engine.sampling:
        step(engine, answers)
    return answers


def step(engine, answers):
    for event in engine.sample_step():
        answers[event.request_id].add(event)


def ask(engine, *ops):
    answers = defaultdict(Answer)
    for op in ops:
        while not engine.admit(op):
            step(engine, answers)
    drain(engine, answers)
    return answers if len(ops) > 1 else answers[ops[0].request_id]


def train(engine, passes, between=lambda: None):
    return engine.train(passes, between)


def learn(engine, model="m", seed=0):
    """Changes a model for good."""
    train(engine, [train_pass(datum(random_tokens(20, seed)), model=model)])
    engine.optim_step(OptimStep(model, 2, "r", AdamParams(learning_rate=1e-2)))


def publish(engine, folder, revision="v", model="m"):
    """A revision of what a model is now; gives the name under which it can be sampled."""
    engine.save_sampler(SaveSampler(model, 3, "r", str(folder), revision))
    return folder_revision(revision, folder)


@pytest.fixture
def engine(make_engine):
    engine = make_engine()
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0)))
    learn(engine)
    return engine


def test_info_says_what_requests_are_checked_against(make_engine, folder):
    info = make_engine(max_lora_rank=8).info
    assert (info.base_model, info.folder, info.vocab_size, info.context_window) == ("tiny", str(folder), 512, 512)
    assert (info.eos_token_ids, info.max_lora_rank, info.n_threads) == ((2,), 8, 1)


def test_an_idle_engine_has_nothing_to_do(make_engine):
    engine = make_engine()
    assert not engine.sampling
    assert engine.sample_step() == []
    ask(engine, sample_op(PROMPT))
    assert not engine.sampling


def test_a_fresh_adapter_says_what_the_base_says(make_engine, tmp_path):
    engine = make_engine()
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0)))
    fresh = ask(engine, sample_op(PROMPT, revision=publish(engine, tmp_path / "v")))
    assert fresh.tokens == ask(engine, sample_op(PROMPT)).tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_revision_scores_what_its_model_scored(make_engine, tmp_path, precision):
    engine = make_engine(precision=precision)
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0)))
    learn(engine)
    answer = ask(engine, sample_op(PROMPT, scores=SCORED, revision=publish(engine, tmp_path / "v")))
    tokens = PROMPT + answer.tokens[0]
    (result,) = train(engine, [train_pass(datum(tokens), forward_only=True)])
    sampled = torch.cat((floats(answer.report.logprobs)[1:], torch.tensor(answer.logprobs[0])))
    assert torch.equal(torch.tensor(result.outputs[0]["logprobs"].numpy()[:-1]), sampled)


def test_a_revision_stays_as_it_was_while_its_model_learns(engine, tmp_path):
    op = sample_op(PROMPT, scores=SCORED, revision=publish(engine, tmp_path / "v"))
    before = ask(engine, op)
    learn(engine, seed=1)
    after = ask(engine, op)
    assert (after.tokens, after.logprobs, after.report) == (before.tokens, before.logprobs, before.report)
    newer = ask(engine, sample_op(PROMPT, scores=SCORED, revision=publish(engine, tmp_path / "w", "w")))
    assert newer.report != before.report


def test_a_revision_comes_back_from_its_folder(engine, make_engine, tmp_path):
    op = sample_op(PROMPT, scores=SCORED, revision=publish(engine, tmp_path / "v"))
    kept, loaded = ask(engine, op), ask(make_engine(), op)
    assert (loaded.tokens, loaded.logprobs, loaded.report) == (kept.tokens, kept.logprobs, kept.report)


def test_more_revisions_than_fit_take_turns(make_engine, tmp_path):
    engine = make_engine(resident_revisions=2)
    engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0)))
    names = []
    for seed in range(4):
        learn(engine, seed=seed)
        names.append(publish(engine, tmp_path / f"v{seed}", f"v{seed}"))
    ops = [sample_op(PROMPT, request=name, revision=name) for name in names]
    together = ask(engine, *ops)
    assert len(engine.revisions.resident) == 2
    for op in ops:
        assert ask(engine, op).logprobs == together[op.request_id].logprobs
    assert len({tuple(together[name].logprobs[0]) for name in names}) == 4


def test_an_unreadable_revision_fails_its_request_alone(engine, tmp_path):
    missing = sample_op(PROMPT, request="missing", revision=f"gone={tmp_path / 'gone'}")
    answers = ask(engine, missing, sample_op(PROMPT, request="good"))
    (failed,) = answers["missing"].failures
    assert failed.failure.category == "user"
    assert "gone" in failed.failure.message
    assert len(answers["good"].tokens[0]) == 8


def test_a_damaged_revision_fails_its_request_alone(engine, make_engine, tmp_path):
    name = publish(engine, tmp_path / "v")
    weights = tmp_path / "v" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert ask(make_engine(), sample_op(PROMPT, revision=name)).failures


def test_an_adapter_of_another_base_is_refused(engine, make_engine, tmp_path):
    other_folder = make_tiny_model(tmp_path / "other", hidden_size=32)
    other = LocalEngine(EngineConfig(device="cpu", threads=1, kv_cache_mib=1), "o", other_folder, tmp_path / "w")
    other.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0)))
    (failed,) = ask(engine, sample_op(PROMPT, revision=publish(other, tmp_path / "v"))).failures
    assert "shape" in failed.failure.message


def test_a_dropped_revision_is_read_anew(engine, tmp_path):
    """A name can be used again after its checkpoint was deleted; nothing of the old weights may answer then."""
    name = publish(engine, tmp_path / "v")
    old = ask(engine, sample_op(PROMPT, scores=SCORED, revision=name))
    engine.drop_revision("v")
    learn(engine, seed=1)
    publish(engine, tmp_path / "v")
    new = ask(engine, sample_op(PROMPT, revision=name))
    assert new.cache_hit_tokens == 0
    assert new.logprobs != old.logprobs


def test_a_sample_that_outlives_its_revision_leaves_nothing_to_the_next_of_that_name(engine, make_engine, tmp_path):
    name = publish(engine, tmp_path / "v")
    assert engine.admit(sample_op(PROMPT, request="old", revision=name))
    engine.sample_step()
    engine.drop_revision("v")
    shutil.rmtree(tmp_path / "v")
    learn(engine, seed=1)
    publish(engine, tmp_path / "v")
    assert len(drain(engine)["old"].tokens[0]) == 7
    new = ask(engine, sample_op(PROMPT, revision=name))
    assert new.logprobs == ask(make_engine(), sample_op(PROMPT, revision=name)).logprobs


def test_no_more_is_admitted_than_runs(make_engine):
    engine = make_engine(max_running_samples=3)
    assert engine.admit(sample_op(PROMPT, request="a", n=2))
    assert engine.admit(sample_op(PROMPT, request="b", n=2))
    assert not engine.admit(sample_op(PROMPT, request="c"))
    drain(engine)
    assert engine.admit(sample_op(PROMPT, request="c"))


def test_what_can_never_fit_into_the_cache_is_refused(make_engine):
    engine = make_engine()
    n_room = engine.sampler.limits.n_pages * engine.sampler.limits.page_tokens
    (failed,) = ask(engine, sample_op([5] * n_room)).failures
    assert "kv_cache_mib" in failed.failure.message
    assert not engine.sampling


def test_a_cancelled_request_leaves_no_page_behind(engine):
    engine.admit(sample_op(PROMPT, request="a", n=3))
    engine.admit(sample_op(PROMPT, request="b"))
    engine.sample_step()
    engine.sample_step()
    engine.cancel_sample("a")
    answers = drain(engine)
    assert set(answers) == {"b"}
    engine.sampler.tree.evict(engine.sampler.pool.n_pages)
    assert engine.sampler.pool.n_free == engine.sampler.pool.n_pages


def test_unknown_requests_can_be_cancelled_and_finished(engine):
    engine.cancel_sample("nobody")
    engine.finish_sample("nobody", 0)
    engine.drop_revision("nobody")


def test_samples_go_on_between_the_layers_of_a_training_step(engine, make_engine):
    op = sample_op(PROMPT, max_tokens=100)
    alone = ask(make_engine(), op)
    assert engine.admit(op)
    answers = defaultdict(Answer)

    def sample():
        for event in engine.sample_step():
            answers[event.request_id].add(event)

    passes = [train_pass(*(datum(random_tokens(30, i)) for i in range(4)))]
    (beside,) = train(engine, passes, sample)
    assert 0 < len(answers["r"].tokens[0]) < 100
    drain(engine, answers)
    assert (answers["r"].tokens, answers["r"].logprobs) == (alone.tokens, alone.logprobs)
    assert beside == train(engine, passes)[0]
