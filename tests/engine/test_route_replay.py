"""Routes that sampling writes down are those that were taken, and training follows them with live scores."""

import msgspec
import numpy as np
import pytest
import torch

from loreloop.engine.training.route_replay import RouteReplay, check_routes
from loreloop.model.expert_routes import FREE, Routes
from loreloop.protocol.errors import BadRequest
from tests.engine.sample_rig import Answer, make_sampler, one, run, sample_op
from tests.engine.train_rig import Rig, datum, laid_out, random_tokens, relative_error, train_pass
from tests.tiny import make_tiny_model

PROMPT = random_tokens(21)


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3"])
def rig(request, tmp_path_factory):
    return Rig(make_tiny_model(tmp_path_factory.mktemp("model"), request.param))


def routed_datum(rig, answer: Answer, prompt=PROMPT, index=0):
    """The sequence without its last token, with its routes."""
    tokens = [*prompt, *answer.tokens[index]][:-1]
    return msgspec.structs.replace(datum(tokens), routes=answer.routes[index])


def ids_of(rig, routes: bytes) -> np.ndarray:
    moe = rig.decoder.spec.moe
    return np.frombuffer(routes, "<i2").reshape(-1, len(moe.layers), moe.top_k)


def trained(rig, state, *data, follow=True):
    """Metrics of a pass, and its log-probs."""
    rig.trainer.replay_routes = follow
    work = laid_out(train_pass(*data), state)
    rig.trainer.run([work])
    rig.trainer.replay_routes = True
    return work.result().metrics, work.logps


def test_what_is_recorded_is_what_training_would_choose(rig):
    state = rig.state()
    op = sample_op(PROMPT, routes=True, max_tokens=12)
    answer = one(make_sampler(rig), op, state.publish())
    assert len(ids_of(rig, answer.routes[0])) == 21 + 12 - 1
    metrics, _ = trained(rig, state, routed_datum(rig, answer))
    assert metrics["e_recorded:sum"] == ids_of(rig, answer.routes[0]).size
    assert (metrics["e_out_of_route:sum"], metrics["e_router_moved:sum"]) == (0, 0)


def test_known_prefixes_and_samples_that_gave_way_are_recorded_as_well(rig):
    view = rig.state().publish()
    op = sample_op(PROMPT, routes=True, max_tokens=20, n=3)
    plenty = one(make_sampler(rig), op, view)
    sampler = make_sampler(rig, n_pages=14, page_tokens=4)  # too few for three samples at once
    run(sampler, (sample_op(PROMPT[:10], request="before", max_tokens=1), view))
    narrow = one(sampler, op, view)
    assert narrow.cache_hit_tokens > 0
    for index in range(3):
        assert narrow.tokens[index] == plenty.tokens[index]
        assert np.array_equal(ids_of(rig, narrow.routes[index]), ids_of(rig, plenty.routes[index]))


def test_nothing_is_told_unasked(rig):
    assert not one(make_sampler(rig), sample_op(PROMPT)).routes


def test_training_follows_given_routes_with_its_own_scores(rig):
    moe, state, random = rig.decoder.spec.moe, rig.state(), np.random.default_rng(0)
    ids = np.stack([random.permutation(moe.n_experts)[: moe.top_k] for _ in range(20 * len(moe.layers))])
    plain = datum(random_tokens(20))
    given = msgspec.structs.replace(plain, routes=ids.astype("<i2").tobytes())
    metrics, logps = trained(rig, state, given)
    assert metrics["e_out_of_route:sum"] == 0
    assert metrics["e_router_moved:sum"] > 0
    free, free_logps = trained(rig, state, given, follow=False)
    assert free["e_out_of_route:sum"] == free["e_router_moved:sum"] > 0
    assert torch.equal(free_logps[0], trained(rig, state, plain)[1][0])
    assert (logps[0] - free_logps[0]).abs().max() > 1e-3


def test_gradients_flow_through_the_scores_of_given_experts(rig):
    """A step against the gradient lowers the loss, by as much as the gradient says."""
    state = rig.state()
    answer = one(make_sampler(rig), sample_op(PROMPT, routes=True, max_tokens=12), state.publish())
    given = routed_datum(rig, answer)
    before = -sum(float(logp.sum()) for logp in trained(rig, state, given)[1].values())
    step = 1e-5 / float(state.grad.norm())
    expected = step * float(state.grad.square().sum())
    state.master.sub_(state.grad, alpha=100 * step)
    state.refresh_weights()
    after = -sum(float(logp.sum()) for logp in trained(rig, state, given)[1].values())
    assert before - after == pytest.approx(100 * expected, rel=0.1)


def test_equal_tokens_of_different_routes_are_not_shared_and_equal_ones_are(rig):
    moe, state = rig.decoder.spec.moe, rig.state()
    tokens = random_tokens(20)
    routes = [np.full((20, len(moe.layers), moe.top_k), FREE, np.int16) for _ in range(3)]
    for ids, first in zip(routes[:2], (0, 1), strict=True):
        ids[5:] = np.arange(first, first + moe.top_k)
    data = [msgspec.structs.replace(datum(tokens), routes=ids.tobytes()) for ids in (*routes, routes[0])]
    together = trained(rig, state, *data)[1]
    grad = state.grad.clone()
    state.clear_grad()
    alone = [trained(rig, state, one_datum)[1][0] for one_datum in data]
    for index, logp in enumerate(alone):
        assert (together[index] - logp).abs().max() <= 5e-5
    assert torch.equal(together[0], together[3])
    assert relative_error(grad, state.grad) <= 1e-4
    assert trained(rig, state, *data)[0]["e_out_of_route:sum"] == 0


def test_a_book_of_routes_gives_back_ids_of_either_sign(rig):
    moe = rig.decoder.spec.moe
    book = RouteReplay(moe)
    routes = np.arange(3 * len(moe.layers) * moe.top_k, dtype=np.int16) % moe.n_experts
    one_datum = msgspec.structs.replace(datum([5, 0, 511]), routes=routes.tobytes())
    tokens = np.array([5, -(1 << 62), 511])
    ids, given_LTK = book.read(book.identities(tokens, one_datum.routes))
    assert ids.tolist() == tokens.tolist()
    assert np.array_equal(given_LTK.transpose(0, 1).flatten().numpy(), routes)
    assert book.read(tokens)[1] is None


@pytest.mark.parametrize(("routes", "words"), [(b"\0" * 6, "has 3 routes; 4 tokens"), (b"\0", "has 0 routes")])
def test_too_few_routes_are_refused(rig, routes, words):
    op = train_pass(msgspec.structs.replace(datum(random_tokens(4)), routes=routes))
    with pytest.raises(BadRequest, match=words):
        check_routes(op, rig.decoder.spec.moe)


def test_an_expert_that_is_not_there_is_refused(rig):
    moe = rig.decoder.spec.moe
    routes = np.full(4 * len(moe.layers) * moe.top_k, moe.n_experts, np.int16).tobytes()
    with pytest.raises(BadRequest, match=f"the expert {moe.n_experts}; there are {moe.n_experts}"):
        check_routes(train_pass(msgspec.structs.replace(datum(random_tokens(4)), routes=routes)), moe)


def test_a_layer_computed_again_goes_the_same_way():
    routes = Routes([0])
    first = routes.settle(0, torch.tensor([[1, 2]]))
    assert torch.equal(routes.settle(0, torch.tensor([[2, 3]])), first)


@pytest.mark.parametrize("route", [(1, 1, 2), (FREE, 0, 1)], ids=["twice", "half open"])
def test_routes_of_one_expert_twice_or_half_open_are_refused(rig, route):
    moe = rig.decoder.spec.moe
    ids = np.tile(np.array(route, np.int16)[: moe.top_k], 4 * len(moe.layers))
    with pytest.raises(BadRequest, match="one expert twice"):
        check_routes(train_pass(msgspec.structs.replace(datum(random_tokens(4)), routes=ids.tobytes())), moe)


def test_routes_for_a_model_without_experts_are_refused():
    with pytest.raises(BadRequest, match="has no experts"):
        check_routes(train_pass(msgspec.structs.replace(datum(random_tokens(4)), routes=b"\0\0")), None)


def test_a_pass_is_told_of_its_own_rows_alone(rig):
    moe, state = rig.decoder.spec.moe, rig.state()
    routes = np.tile(np.arange(moe.top_k, dtype=np.int16), 9 * len(moe.layers)).tobytes()
    followed = laid_out(train_pass(msgspec.structs.replace(datum(random_tokens(9)), routes=routes)), state)
    free = laid_out(train_pass(datum(random_tokens(9, seed=1))), state)
    rig.trainer.run([followed, free])
    assert followed.result().metrics["e_recorded:sum"] == 9 * len(moe.layers) * moe.top_k
    assert free.result().metrics["e_recorded:sum"] == 0
