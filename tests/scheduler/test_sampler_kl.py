"""How far a pass's policy is from its sampler, by what both say of the tokens that count."""

import math

import numpy as np
import pytest

from loreloop.engine.fake import FakeEngine
from loreloop.host.divergences import MOST_RUNS, Divergences
from loreloop.protocol.link import Batch, BatchDone, OpEnd, Restored, Submit
from loreloop.protocol.tensors import tensor_of
from loreloop.protocol.token_ids import pack_ids
from loreloop.protocol.training import (
    AdamParams,
    Datum,
    Done,
    ForwardBackward,
    OptimStep,
    PassResult,
    StepResult,
    TextChunk,
)
from loreloop.scheduler.sampler_kl import sampler_kl
from tests.scheduler.harness import EMPTY, live
from tests.scheduler.ops import create, step


def floats(*values):
    return tensor_of(np.array(values, np.float32))


def a_pass(trained, sampled=None, advantages=None):
    inputs = {"target_tokens": tensor_of(np.arange(len(trained)))}
    if sampled is not None:
        inputs |= {"logprobs": floats(*sampled), "advantages": floats(*advantages)}
    datum = Datum((TextChunk(pack_ids(np.arange(len(trained)))),), inputs)
    op = ForwardBackward(
        model_id="m", seq_id=1, request_id="m:1", data=(datum,), loss_fn="ppo", loss_config={}, forward_only=False
    )
    return op, PassResult(({"logprobs": floats(*trained)},), {"loss:sum": 1.0})


def test_it_is_the_mean_over_tokens_with_an_advantage():
    op, result = a_pass([-5.0, -1.0, -2.0], [0.0, -1.5, -1.8], [0.0, 1.0, -1.0])
    expected = np.mean([np.exp(d) - 1 - d for d in (0.5, -0.2)])
    assert sampler_kl(op, result) == pytest.approx(expected, rel=1e-6)


def test_what_compares_with_no_sampler_tells_nothing():
    assert sampler_kl(*a_pass([-1.0])) is None
    assert sampler_kl(*a_pass([-1.0], [-1.0], [0.0])) is None
    assert sampler_kl(OptimStep("m", 2, "m:2", AdamParams()), Done()) is None


def test_an_enormous_ratio_is_infinitely_far():
    assert sampler_kl(*a_pass([0.0], [-2000.0], [1.0])) == math.inf


@pytest.mark.parametrize("unread", [[-1.0], [-1.0, math.nan], [[-1.0, -1.0], [-1.0, -1.0]]])
def test_inputs_that_the_loss_does_not_read_end_no_engine(tmp_path, unread):
    """`cross_entropy` takes a datum of another loss and looks at what it needs alone."""
    inputs = {"target_tokens": tensor_of(np.arange(2)), "logprobs": tensor_of(np.array(unread, np.float32))}
    datum = Datum((TextChunk(pack_ids(np.arange(2))),), inputs | {"advantages": floats(0.0, 1.0)})
    op = ForwardBackward("m", 1, "m:1", (datum,), "cross_entropy", {})
    groups = [[EMPTY, Restored()], [Submit(create("m")), Submit(op), Submit(step("m", 2))]]
    journal = live(FakeEngine(), groups, tmp_path)
    assert isinstance(journal.results["m:1"], PassResult)
    assert isinstance(journal.results["m:2"], StepResult)
    assert all(end.sampler_kl is None for done in journal.heard if isinstance(done, BatchDone) for end in done.ends)


def told(kept, run, nats, *, replayed=False):
    end = OpEnd(f"{run}:1", Done(), 0, nats)
    kept.batch_ended("tiny", BatchDone(Batch(1, ()), (end,), replayed))


def test_an_alarm_is_told_once_until_it_was_over(caplog):
    kept = Divergences(0.1)
    for nats in (0.01, 0.2, 0.3, 0.05, math.nan):
        told(kept, "s:train:0", nats)
    assert kept.n_alarms["tiny"] == 3
    assert len([record for record in caplog.records if "has moved away" in record.message]) == 2
    assert math.isnan(kept.last["s:train:0"])


def test_without_a_bound_there_is_no_alarm_and_replays_tell_nothing(caplog):
    kept = Divergences(0.0)
    told(kept, "r", 5.0)
    told(kept, "q", 5.0, replayed=True)
    assert kept.last == {"r": 5.0}
    assert not kept.n_alarms
    assert not caplog.records


def test_only_the_runs_that_were_trained_last_are_kept():
    kept = Divergences(0.1)
    for number in range(MOST_RUNS + 1):
        told(kept, str(number), 0.0)
        told(kept, "0", 0.0)  # goes on, and stays
    assert len(kept.last) == len(kept.models) == MOST_RUNS
    assert "0" in kept.last
    assert "1" not in kept.last
