"""Scales that are fitted to what turned out true, and a judge that is corrected by them."""

import asyncio
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.learn.examples import Task
from loreloop.learn.rewards.calibration import Seen, brier, fitted, fitted_isotonic, fitted_logistic
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rewards.self_critique import FEWEST, SelfCritique
from loreloop.text.conversation import Conversation

SEEN = st.lists(
    st.builds(Seen, st.floats(-10, 10), st.sampled_from([0.0, 1.0])),
    min_size=1,
    max_size=60,
)


def drawn(slope: float, offset: float, n: int) -> list[Seen]:
    rng = random.Random(1)
    scores = [rng.uniform(0, 10) for _ in range(n)]
    return [Seen(x, float(rng.random() < 1 / (1 + math.exp(-(slope * x + offset))))) for x in scores]


def test_the_logistic_fit_finds_the_curve_that_outcomes_were_drawn_from() -> None:
    found = fitted_logistic(drawn(1.5, -6, 5000))
    assert found.slope == pytest.approx(1.5, rel=0.1)
    assert found.offset == pytest.approx(-6, rel=0.1)


def test_a_worked_out_isotonic_fit() -> None:
    # 0, 1 | 0.5 from the pooled 1 and 0 | 1
    seen = [Seen(1, 0), Seen(2, 1), Seen(3, 0), Seen(4, 1)]
    found = fitted_isotonic(seen)
    assert (found.scores, found.heights) == ((1, 2.5, 4), (0, 0.5, 1))
    assert [found(x) for x in (0, 1, 1.75, 2.5, 9)] == [0, 0, 0.25, 0.5, 1]


@given(SEEN)
def test_every_scale_rises_and_gives_chances(seen: list[Seen]) -> None:
    for form in ("logistic", "isotonic"):
        scale = fitted(form, seen)
        values = [scale(x / 2) for x in range(-25, 26)]
        assert all(0 <= value <= 1 for value in values)
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))


@given(SEEN)
def test_the_isotonic_steps_are_those_of_the_min_max_formula(seen: list[Seen]) -> None:
    """max over j ≤ i of min over k ≥ i of the mean from j to k (Robertson and Waltman, 1968), over distinct scores."""
    groups: dict[float, list[float]] = {}
    for one in sorted(seen, key=lambda one: one.score):
        groups.setdefault(one.score, []).append(one.outcome)
    outcomes = list(groups.values())

    def mean(low: int, high: int) -> float:
        together = [outcome for group in outcomes[low : high + 1] for outcome in group]
        return sum(together) / len(together)

    places = range(len(outcomes))
    heights = [max(min(mean(j, k) for k in places if k >= i) for j in places if j <= i) for i in places]
    assert fitted_isotonic(seen).heights == pytest.approx(list(dict.fromkeys(round(height, 12) for height in heights)))


def test_few_answers_that_separate_perfectly_give_no_endless_slope() -> None:
    scale = fitted_logistic([Seen(0, 0), Seen(1, 1)])
    assert 0.2 < scale(0) < 0.5 < scale(1) < 0.8


def test_a_judge_whose_scores_run_backwards_says_nothing() -> None:
    scale = fitted_logistic([Seen(float(-x), float(x > 5)) for x in range(10)])
    assert scale.slope == 0


class Judge:
    """Too sure of itself: it gives 0.9 to right answers and 0.8 to wrong ones."""

    async def __call__(self, answer: Answer, task: Task) -> Score:
        if answer.text == "?":
            return Score(0.0, trouble="model_grader_parse: no number")
        return Score(0.9 if answer.text == "right" else 0.8)


class Verifier:
    """Knows half of the tasks."""

    async def __call__(self, answer: Answer, task: Task) -> Score:
        if "truth" not in task.item:
            return Score(0.0, trouble="invalid_variable: item.truth leads nowhere")
        return Score(float(answer.text == "right"))


@pytest.mark.parametrize("form", ["logistic", "isotonic"])
def test_a_judge_is_corrected_by_verified_answers(form: str) -> None:
    critique = SelfCritique(Judge(), Verifier(), form=form, refit_every=10)  # type: ignore[arg-type]
    known, unknown = Task(Conversation(()), {"truth": 1}), Task(Conversation(()))

    async def scene() -> None:
        assert (await critique(Answer("wrong"), unknown)).value == 0.8
        for n in range(FEWEST * 2):
            score = await critique(Answer("right" if n % 2 else "wrong"), known)
            assert score.value == n % 2
            assert "judge" in score.parts
        assert (await critique(Answer("wrong"), unknown)).value < 0.1
        assert (await critique(Answer("right"), unknown)).value > 0.9
        assert (await critique(Answer("?"), unknown)).trouble is not None
        assert (await critique(Answer("?"), known)).value == 0

    asyncio.run(scene())
    report = critique.report()
    assert report.n_verified == FEWEST * 2
    assert report.fitted is not None
    assert report.raw is not None
    assert report.fitted < 0.05 < 0.3 < report.raw


def test_brier_of_a_coin() -> None:
    assert brier(lambda score: 0.5, [Seen(0, 0), Seen(1, 1)]) == 0.25
