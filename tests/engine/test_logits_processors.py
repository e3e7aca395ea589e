"""Bias, penalties, min_p and grammars change what is drawn as their formulas say, and nothing that is reported."""

import json
import math
import re

import numpy as np
import pytest
import torch

from loreloop.engine.sampling import next_token
from loreloop.protocol.errors import BadRequest
from loreloop.text.grammars.grammar import Grammars, json_schema_grammar, regex_grammar
from loreloop.text.tokenizer import TextTokenizer
from tests.engine.sample_rig import base_state, make_sampler, one, partial_of, run, sample_op
from tests.engine.train_rig import Rig, datum, random_tokens, train_pass
from tests.tiny import make_tiny_model

PROMPT = random_tokens(37)
EOS = 0
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def rig(folder):
    return Rig(folder)


@pytest.fixture(scope="module")
def grammars(folder, rig):
    return Grammars.of(folder, rig.decoder.spec.vocab_size, (EOS,))


def logits(rig, tokens):
    """(T, V): log-probabilities, which are logits as good as any; by the trainer's own forward pass."""
    targets = torch.arange(rig.decoder.spec.vocab_size).expand(len(tokens), -1)
    return rig.run((base_state(rig), train_pass(datum(tokens, targets=targets), forward_only=True)))[0][0]


def drawn_from(rig, tokens, at, shape):
    """The distribution after `processed_logits` has changed a copy of the logits behind tokens[:at]."""
    return shape(logits(rig, tokens)[at - 1].clone(), tokens[len(PROMPT) : at]).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_draw_follows_the_formula_and_the_report_does_not_feel_it(rig, temperature):
    shape = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "logit_bias": ((7, 3.0),)}
    op = sample_op(PROMPT, filtered=True, temperature=temperature, max_tokens=20, **shape)
    answer = one(make_sampler(rig), op)
    tokens = [*PROMPT, *answer.tokens[0]]

    def by_formula(logits_V, drawn):
        for token in set(drawn):
            logits_V[token] -= 0.7 + 0.4 * drawn.count(token)
        logits_V[7] += 3
        return logits_V / temperature

    for i, token in enumerate(answer.tokens[0]):
        at = len(PROMPT) + i
        assert answer.filtered[0][i] == pytest.approx(drawn_from(rig, tokens, at, by_formula)[token].item(), abs=1e-4)
        plain = (logits(rig, tokens)[at - 1] / temperature).log_softmax(-1)
        assert answer.logprobs[0][i] == pytest.approx(plain[token].item(), abs=1e-4)


def test_greedy_takes_the_likeliest_of_the_changed_distribution(rig):
    bias = ((11, 60.0),)
    assert one(make_sampler(rig), sample_op(PROMPT, temperature=0.0, logit_bias=bias)).tokens[0] == [11] * 8
    once = sample_op(PROMPT, temperature=0.0, logit_bias=bias, presence_penalty=2.0, frequency_penalty=2.0)
    assert one(make_sampler(rig), once).tokens[0] == [11] * 8  # 60 is more than eight penalties
    never = tuple((token, -100.0) for token in range(0, 512, 2))
    assert all(token % 2 for token in one(make_sampler(rig), sample_op(PROMPT, logit_bias=never)).tokens[0])


def test_repetition_is_divided_or_multiplied(rig):
    """By the sampler's own logits, whose sign matters here."""
    sampler = make_sampler(rig)
    seen: list[torch.Tensor] = []
    plain = next_token.processed_logits

    def spy(row, logits_V):
        out = plain(row, logits_V)
        seen.append(torch.stack((logits_V.clone(), out)))
        assert set(row.tokens) >= set(PROMPT)
        for token in range(len(logits_V)):
            old = logits_V[token].item()
            expected = (old / 1.5 if old > 0 else old * 1.5) if token in row.tokens else old
            assert out[token].item() == pytest.approx(expected, rel=1e-6)
        return out

    next_token.processed_logits = spy
    try:
        one(sampler, sample_op(PROMPT, repetition_penalty=1.5, max_tokens=3))
    finally:
        next_token.processed_logits = plain
    assert len(seen) == 3


def test_min_p_drops_what_is_much_less_likely_than_the_likeliest(rig):
    op = sample_op(PROMPT, filtered=True, min_p=0.5, n=8, max_tokens=4)
    answer = one(make_sampler(rig), op)
    for index in range(8):
        tokens = [*PROMPT, *answer.tokens[index]]
        p_TV = logits(rig, tokens).exp()
        for i, token in enumerate(answer.tokens[index]):
            p_V = p_TV[len(PROMPT) + i - 1]
            kept = p_V >= 0.5 * p_V.max()
            assert kept[token]
            assert answer.filtered[index][i] == pytest.approx(math.log(p_V[token] / p_V[kept].sum()), abs=1e-4)


def test_one_rows_shape_leaves_its_neighbours_alone(rig):
    alone = one(make_sampler(rig), sample_op(PROMPT))
    shaped = sample_op(PROMPT, request="s", logit_bias=((3, 50.0),), min_p=0.1)
    together = run(make_sampler(rig), sample_op(PROMPT), shaped)
    assert together["r"].tokens == alone.tokens
    assert together["s"].tokens[0] == [3] * 8


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_a_schema_is_always_satisfied(rig, folder, grammars, temperature):
    sampler = make_sampler(rig, constrain=grammars.constraint)
    grammar = json_schema_grammar(SCHEMA)
    op = sample_op(PROMPT, n=5, temperature=temperature, max_tokens=60, grammar=grammar, stop_tokens=(EOS,))
    answer = one(sampler, op)
    for index in range(5):
        assert answer.reasons[index] == "stop"
        value = json.loads(TextTokenizer(folder).decode(answer.tokens[index], skip_special=True))
        assert value["city"] in ("Oslo", "Rome")
        assert 1 <= value["days"] <= 9


def test_a_text_ends_only_where_its_grammar_lets_it(rig, folder, grammars):
    sampler = make_sampler(rig, constrain=grammars.constraint)
    op = sample_op(PROMPT, n=8, max_tokens=200, temperature=1.5, grammar=regex_grammar("(ab)+c?"), stop_tokens=(EOS,))
    answer = one(sampler, op)
    for index, reason in answer.reasons.items():
        text = TextTokenizer(folder).decode(answer.tokens[index], skip_special=True)
        assert reason == "length" or re.fullmatch("(ab)+c?", text)


def test_a_resumed_text_goes_on_in_its_grammar(rig, grammars):
    op = sample_op(PROMPT, max_tokens=60, grammar=json_schema_grammar(SCHEMA), stop_tokens=(EOS,))
    whole = one(make_sampler(rig, constrain=grammars.constraint), op)
    begun = partial_of(whole.tokens[0][:4], whole.logprobs[0][:4])
    resumed = sample_op(PROMPT, max_tokens=60, grammar=json_schema_grammar(SCHEMA), stop_tokens=(EOS,), resume=(begun,))
    rest = one(make_sampler(rig, constrain=grammars.constraint), resumed)
    assert whole.tokens[0][4:] == rest.tokens[0]


class Tired:
    """Gives up at its fourth question, or at its fourth token."""

    over = False

    def __init__(self, while_taking):
        self.while_taking, self.left = while_taking, 3

    def _work(self):
        self.left -= 1
        if self.left < 0:
            raise BadRequest("too complex")

    def allowed(self):
        if not self.while_taking:
            self._work()
        return np.ones(512, np.bool_)

    def take(self, token):
        if self.while_taking:
            self._work()

    def copy(self):
        other = Tired(self.while_taking)
        other.left = self.left
        return other


@pytest.mark.parametrize("while_taking", [True, False])
def test_a_grammar_that_cannot_be_followed_fails_its_request_alone(rig, while_taking):
    sampler = make_sampler(rig, constrain=lambda grammar: Tired(while_taking))
    alone = one(make_sampler(rig), sample_op(PROMPT))
    answers = run(sampler, sample_op(PROMPT), sample_op(PROMPT, request="bad", grammar="x", n=2))
    assert answers["r"].tokens == alone.tokens
    assert [event.failure.category for event in answers["bad"].failures] == ["user"]
    assert len(answers["bad"].tokens[0]) == 3
    assert not sampler.busy
