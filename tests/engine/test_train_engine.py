"""Training through the engine's contract: what scripts see, several models, mistakes, restarts."""

import pytest
import torch

from loreloop.config import EngineConfig
from loreloop.engine import local
from loreloop.engine.local import LocalEngine
from loreloop.protocol.errors import UserError
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    Failure,
    LoadState,
    LoraSpec,
    OptimStep,
    PassResult,
    SaveState,
)
from tests.engine.train_rig import datum, policy_datum, random_tokens, train_pass
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_engine(folder, tmp_path):
    """Engines over one base; each has its own place for spilled models."""
    n_engines = iter(range(99))

    def make(**settings):
        config = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1, **settings)
        return LocalEngine(config, "tiny", folder, tmp_path / f"work{next(n_engines)}")

    return make


def create(engine, model="m", rank=4, **lora):
    engine.create_model(CreateModel(model, 0, "r", LoraSpec(rank, 0, **lora)))


def train(engine, *passes):
    return engine.train(passes, lambda: None)


def step(engine, model="m", **adam):
    return engine.optim_step(OptimStep(model, 2, "r", AdamParams(**({"learning_rate": 1e-2} | adam)))).metrics


def lesson(seed=0, model="m"):
    return train_pass(*(datum(random_tokens(20, seed + i)) for i in range(3)), model=model)


def masters(engine, *models):
    return [engine.bank.get(model).master.clone() for model in models]


def test_a_model_learns(make_engine):
    engine = make_engine()
    create(engine)
    losses = []
    for _ in range(15):
        losses.append(train(engine, lesson())[0].metrics["loss:sum"])
        step(engine)
    assert losses[-1] < 0.5 * losses[0]


def test_results_come_in_the_shape_of_the_targets(make_engine):
    engine = make_engine()
    create(engine)
    op = train_pass(datum(random_tokens(7)), datum(random_tokens(5), torch.ones(5, 3)))
    (result,) = train(engine, op)
    assert [output["logprobs"].shape for output in result.outputs] == [(7,), (5, 3)]
    assert all(output["logprobs"].dtype == "float32" for output in result.outputs)


def test_a_refused_pass_fails_alone(make_engine):
    engine = make_engine()
    create(engine)
    results = train(engine, lesson(), train_pass(datum([1, 512])), lesson(model="nobody"), lesson(7))
    assert [type(result) for result in results] == [PassResult, Failure, Failure, PassResult]
    assert {result.category for result in results[1:3]} == {"user"}


def test_a_refused_pass_leaves_no_gradient(make_engine):
    engine = make_engine()
    create(engine)
    train(engine, train_pass(datum(random_tokens(20)), datum([1, 512])))
    assert not engine.bank.get("m").has_grad
    assert not engine.bank.get("m").grad.any()


def test_an_overflow_fails_the_step_and_training_goes_on(make_engine):
    engine = make_engine()
    create(engine)
    before = masters(engine, "m")[0]
    overflow = datum(random_tokens(9), logprobs=[-1e4] * 9, advantages=[1.0] * 9)
    train(engine, train_pass(overflow, loss="importance_sampling"))
    with pytest.raises(UserError, match="cleared"):
        step(engine)
    assert torch.equal(masters(engine, "m")[0], before)
    train(engine, lesson())
    assert step(engine)["update_l2:mean"] > 0


@pytest.mark.parametrize(
    ("rank", "parts"),
    [(0, {}), (-1, {}), (257, {}), (4, dict.fromkeys(("train_attn", "train_mlp", "train_unembed"), False))],
)
def test_impossible_adapters_are_refused(make_engine, rank, parts):
    engine = make_engine()
    with pytest.raises(UserError):
        create(engine, rank=rank, **parts)
    assert "m" not in engine.bank


@pytest.mark.parametrize(
    "adam", [{"learning_rate": float("nan")}, {"beta1": 1.0}, {"eps": -1.0}, {"weight_decay": -1.0}]
)
def test_impossible_optimizer_settings_are_refused_and_keep_the_gradient(make_engine, adam):
    engine = make_engine()
    create(engine)
    train(engine, lesson())
    with pytest.raises(UserError):
        step(engine, **adam)
    assert step(engine)["unclipped_grad_l2:mean"] > 0


def test_more_models_than_fit_train_as_if_alone(make_engine):
    crowded, roomy = make_engine(resident_models=1), make_engine(resident_models=8)
    for engine in (crowded, roomy):
        for i in range(4):
            create(engine, f"m{i}", rank=i + 1)
        for turn in range(2):
            for i in range(4):
                train(engine, lesson(turn, f"m{i}"))
            for i in range(4):
                step(engine, f"m{i}")
    models = [f"m{i}" for i in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(masters(crowded, *models), masters(roomy, *models), strict=True))


def test_a_run_resumed_from_a_checkpoint_goes_on_to_the_same_bits(make_engine, tmp_path):
    engine = make_engine()
    create(engine)
    train(engine, lesson())
    step(engine)
    size = engine.save_state(SaveState("m", 3, "r", str(tmp_path / "c"))).size_bytes
    assert size == sum(path.stat().st_size for path in (tmp_path / "c").glob("*.safetensors"))
    engine.create_model(CreateModel("again", 0, "r", LoraSpec(1, 1), str(tmp_path / "c"), load_optimizer=True))
    create(engine, "loaded")
    engine.load_state(LoadState("loaded", 1, "r", str(tmp_path / "c"), optimizer=True))
    for model in ("m", "again", "loaded"):
        train(engine, lesson(5, model))
        step(engine, model)
    first, *others = masters(engine, "m", "again", "loaded")
    assert all(torch.equal(other, first) for other in others)


def test_a_model_whose_checkpoint_cannot_be_read_does_not_exist(make_engine, tmp_path):
    engine = make_engine()
    with pytest.raises(UserError, match="nothing are gone"):
        engine.create_model(CreateModel("m", 0, "r", LoraSpec(4, 0), str(tmp_path / "nothing")))
    assert "m" not in engine.bank


def test_a_model_whose_filling_fails_does_not_exist(make_engine, tmp_path, monkeypatch):
    """Whatever fails it: a fresh model under its name would be trained by whoever asked for the old one."""
    engine = make_engine()
    create(engine)
    engine.save_state(SaveState("m", 1, "r", str(tmp_path / "c")))

    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(local, "read_checkpoint", fails)
    with pytest.raises(MemoryError):
        engine.create_model(CreateModel("n", 0, "r", LoraSpec(4, 0), str(tmp_path / "c")))
    assert "n" not in engine.bank
    assert {snapshot.model_id for snapshot in engine.snapshot(str(tmp_path / "s"), 1)} == {"m"}


@pytest.mark.parametrize("threads", [1, 2])
def test_work_done_again_from_a_snapshot_gives_the_same_bits(make_engine, tmp_path, threads):
    first, second = make_engine(), make_engine()
    torch.set_num_threads(threads)
    create(first)
    train(first, lesson())
    (snapshot,) = first.snapshot(str(tmp_path / "s"), 1)  # with a gradient gathered
    second.restore(snapshot)
    released = []
    for engine in (first, second):
        results = train(engine, lesson(3), train_pass(policy_datum(random_tokens(30)), loss="ppo"))
        released.append((results, step(engine)))
    assert released[0] == released[1]
    assert torch.equal(*masters(first, "m"), *masters(second, "m"))


def test_only_what_changed_is_snapshot(make_engine, tmp_path):
    engine = make_engine()
    for model in ("m", "n"):
        create(engine, model)
    assert {s.model_id for s in engine.snapshot(str(tmp_path), 1)} == {"m", "n"}
    train(engine, train_pass(datum(random_tokens(9)), forward_only=True, model="m"), lesson(model="n"))
    assert {s.model_id for s in engine.snapshot(str(tmp_path), 2)} == {"n"}


def test_a_batch_that_breaks_off_leaves_no_gradient(make_engine):
    engine = make_engine()
    create(engine)

    def pause():
        if engine.bank.get("m").grad.any():
            raise MemoryError

    with pytest.raises(MemoryError):
        engine.train([lesson()], pause)
    assert not engine.bank.get("m").grad.any()


def test_a_batch_that_breaks_off_takes_nothing_of_what_was_gathered_before(make_engine):
    """The journal executes the pass that succeeded again, and not the one that failed: both must come to one state."""
    engine, undisturbed = make_engine(), make_engine()
    for each in (engine, undisturbed):
        create(each)
        train(each, lesson())
    gathered = engine.bank.get("m").grad.clone()

    def pause():
        if not torch.equal(engine.bank.get("m").grad, gathered):
            raise MemoryError

    with pytest.raises(MemoryError):
        engine.train([lesson(5)], pause)
    assert torch.equal(engine.bank.get("m").grad, gathered)
    assert step(engine) == step(undisturbed)
    assert torch.equal(*masters(engine, "m"), *masters(undisturbed, "m"))


def test_deterministic_passes_do_not_notice_each_other(make_engine):
    engine = make_engine(deterministic=True)
    create(engine)
    shared = random_tokens(40)
    data = [datum(shared + random_tokens(n, n)) for n in (5, 17, 30)]
    together = train(engine, train_pass(*data, forward_only=True))[0].outputs
    alone = [train(engine, train_pass(d, forward_only=True))[0].outputs[0] for d in data]
    assert list(together) == alone


def test_a_datum_is_laid_out_once(make_engine, monkeypatch):
    """Images are hashed and counted there: twice would be as much work again."""
    engine = make_engine()
    create(engine)
    n_laid_out = []
    lay_out = engine.images.lay_out
    monkeypatch.setattr(engine.images, "lay_out", lambda chunks: n_laid_out.append(1) or lay_out(chunks))
    (result,) = train(engine, lesson())
    assert isinstance(result, PassResult)
    assert len(n_laid_out) == len(result.outputs)
