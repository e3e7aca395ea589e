"""Log-probs and gradients of sequences with images, against transformers' own forward pass and peft, in fp32."""

import pytest
import torch

from loreloop.engine.images import ImageTable
from loreloop.protocol.sampling import PromptScores
from tests.engine.sample_rig import floats, make_sampler, one
from tests.engine.test_train_reference import named_gradients
from tests.engine.train_rig import CPU, Rig, random_tokens, relative_error, train_pass
from tests.engine.vision_rig import VisionReference, image, sample_of, text, vision_datum
from tests.tiny_vision import make_tiny_vision_model, picture

pytestmark = pytest.mark.numbers
CASES = {
    "llava": ("llava", {}),
    "llava-full": ("llava", {"vision_feature_select_strategy": "full", "vision_feature_layer": [-2, -1]}),
    "llava-siglip": ("llava", {"tower": "siglip", "vision_feature_select_strategy": "full"}),
    "qwen3_vl": ("qwen3_vl", {}),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory):
    family, settings = CASES[request.param]
    folder = make_tiny_vision_model(tmp_path_factory.mktemp("model"), family, **settings)
    rig = Rig(folder)
    state = rig.state(rank=4)
    return rig, state, VisionReference(folder, state)


def ids(n, seed=0):
    return [token + 7 for token in random_tokens(n, seed, vocab_size=500)]  # none that means an image


WIDE, TALL = picture(70, 40), picture(33, 90, seed=1)
SEQUENCES = {
    "one image": (text(*ids(5)), image(WIDE), text(*ids(7, 1))),
    "an image first": (image(TALL), text(*ids(4))),
    "several images": (text(*ids(3)), image(WIDE), text(*ids(2)), image(TALL), text(*ids(2, 2)), image(WIDE), text(9)),
    "an image last": (text(*ids(3)), image(TALL)),
    "text alone": (text(*ids(12)),),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_logprobs_and_gradients_equal_transformers(case, name):
    rig, state, reference = case
    state.clear_grad()
    chunks = SEQUENCES[name]
    data = vision_datum(chunks, reference.n_tokens(chunks))
    own = rig.run((state, train_pass(data)))[0][0]
    expected = reference.logprobs(data)
    assert (own - expected).abs().max() <= 1e-4
    gradients = named_gradients(state)
    loss = -(torch.tensor(data.inputs["weights"].numpy()) * expected).sum()
    for adapter, theirs in reference.gradients(loss).items():
        assert relative_error(gradients[adapter], theirs) <= 1e-4, adapter


def test_a_group_on_one_image_is_one_pass_of_the_tower(case):
    rig, state, reference = case
    rig.images.features.clear()
    before = rig.images.n_computed
    questions = [(text(*ids(3)), image(WIDE), text(*ids(4, seed))) for seed in range(16)]
    data = [vision_datum(chunks, reference.n_tokens(chunks), seed) for seed, chunks in enumerate(questions)]
    own = rig.run((state, train_pass(*data, forward_only=True)))[0]
    assert rig.images.n_computed == before + 1
    for logprobs, datum in zip(own, data, strict=True):
        assert (logprobs - reference.logprobs(datum)).abs().max() <= 1e-4


def test_activations_computed_twice_and_images_cached_nowhere_give_the_same(case):
    rig, _, reference = case
    chunks = SEQUENCES["several images"]
    data = vision_datum(chunks, reference.n_tokens(chunks))
    plain = rig.grad(train_pass(data))
    tight = Rig(reference.folder, max_rows=4)
    tight.images.max_bytes = 0
    assert relative_error(tight.grad(train_pass(data)), plain) <= 1e-5


@pytest.mark.parametrize("prefill_tokens", [3, 64])
def test_sampler_equals_transformers(case, prefill_tokens):
    rig, state, reference = case
    chunks = SEQUENCES["several images"]
    sampler = make_sampler(rig, prefill_tokens=prefill_tokens)
    scores = PromptScores(logprobs=True)
    answer = one(sampler, sample_of(chunks, n=3, scores=scores, max_tokens=6), state.weights)
    for index in range(3):
        drawn = answer.tokens[index]
        logp_NV = reference.logits((*chunks, text(*drawn))).log_softmax(-1)
        expected = logp_NV[-7:-1].gather(1, torch.tensor(drawn)[:, None])[:, 0]
        assert (torch.tensor(answer.logprobs[index]) - expected).abs().max() <= 1e-4
    prompt = floats(answer.report.logprobs)
    sequence = rig.images.lay_out(chunks)
    seen = torch.from_numpy(sequence.tokens) >= 0
    assert torch.equal(prompt.isnan()[1:], ~seen[1:])
    expected = logp_NV[: len(prompt) - 1].gather(1, torch.from_numpy(sequence.tokens).clamp(min=0)[1:, None])[:, 0]
    assert (prompt[1:] - expected)[seen[1:]].abs().max() <= 1e-4


def test_prefixes_are_shared_by_images_bytes(case):
    rig, _, _ = case
    sampler = make_sampler(rig, page_tokens=4)
    before = rig.images.n_computed
    same, other = picture(64, 64, seed=5), picture(64, 64, seed=6)

    def ask(data, *question, **fields):
        return one(sampler, sample_of((text(*ids(6)), image(data, **fields), text(*question)), request=str(question)))

    first = ask(same, 11, 12)
    n_prompt = 6 + len(rig.images.lay_out((image(same),)).tokens)
    assert first.cache_hit_tokens == 0
    assert ask(same, 13, 14).cache_hit_tokens == n_prompt
    assert ask(other, 15, 16).cache_hit_tokens == 6
    assert ask(same, 17, 18, width=96, height=40).cache_hit_tokens == 6
    assert rig.images.n_computed == before + 3
    assert ask(same, 11, 12).tokens == first.tokens


def test_images_that_claim_one_place_are_kept_apart(case):
    table = case[0].images
    ours = table.lay_out((image(WIDE),)).images[0]
    twin = table._first_id(ours.key[:8] + b"another image, found by trying")
    assert twin != ours.first_id
    assert table._first_id(ours.key) == ours.first_id


def test_ids_of_images_follow_from_a_secret(case):
    vision, chunks = case[0].images.vision, (image(WIDE),)
    first, again, other = (ImageTable(vision, CPU, 1 << 20, secret) for secret in (b"a", b"a", b"b"))
    ids = first.lay_out(chunks).tokens[0]
    assert again.lay_out(chunks).tokens[0] == ids
    assert other.lay_out(chunks).tokens[0] != ids


def test_another_image_gives_another_answer(case):
    rig, state, reference = case
    a, b = (
        rig.run((state, train_pass(vision_datum(chunks, reference.n_tokens(chunks)), forward_only=True)))[0][0]
        for chunks in ((image(WIDE), text(7, 8)), (image(picture(70, 40, seed=9)), text(7, 8)))
    )
    assert (a - b)[-2:].abs().max() > 0.01
