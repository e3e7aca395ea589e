"""A rollout as a row: what predicts what, what is learned from, and where rewards lie."""

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st

from loreloop.learn.rollouts.traces import traces_of, whole_input
from loreloop.learn.rollouts.values import Context, Observed, Rollout, Sampled
from tests.learn.rollout_rig import rollout, sampled, trace


def test_each_position_predicts_the_next_token() -> None:
    row = trace(sampled(4, 5, reward=0.25), Observed((6, 7)), sampled(8, revision=3), reward=1.0)
    assert row.model_input.to_ints() == [1, 2, 3, 4, 5, 6, 7]
    assert row.targets.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert row.learned.tolist() == [False, False, True, True, False, False, True]
    np.testing.assert_allclose(row.logprobs, [0, 0, -1, -1.1, 0, 0, -1], rtol=1e-6)
    assert row.revisions.tolist() == [0, 0, 0, 0, 0, 0, 3]
    np.testing.assert_allclose(row.earned, [0, 0, 0, 0.25, 0, 0, 0.75])
    assert whole_input(row).to_ints() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_comes_behind_the_last_answer_is_left_out() -> None:
    row = trace(sampled(4), Observed((5, 6)), reward=1.0)
    assert row.targets.tolist() == [2, 3, 4]
    assert row.earned.tolist() == [0, 0, 1]


def test_an_image_in_the_prompt_keeps_its_places() -> None:
    image = tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=3)
    prompt = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1]), image, tinker.EncodedTextChunk(tokens=[2])])
    (row,) = traces_of(Rollout(prompt, (sampled(7, 8),), 1.0))
    assert row.model_input.length == len(row.targets) == 6
    assert row.targets.tolist() == [0, 0, 0, 2, 7, 8]
    assert row.learned.tolist() == [False] * 4 + [True] * 2


def test_a_turn_that_is_not_to_be_learned_is_none_of_the_learned() -> None:
    broken = Sampled((4, 5), (-1.0, -1.0), (0, 0), learned=False)
    assert trace(broken, Observed((6,)), sampled(7)).learned.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("turns", [(Observed((4,)),), (sampled(),)])
def test_nothing_said_is_nothing_to_learn(turns: tuple) -> None:
    assert traces_of(rollout(*turns)) == []


def test_a_rollout_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        trace(sampled(4), prompt=())


def test_an_episode_whose_past_was_told_anew_has_several_rows() -> None:
    earlier = Context(tinker.ModelInput.from_ints([9, 9]), (sampled(4, reward=0.5), Observed((5,))))
    first, last = traces_of(rollout(sampled(6, reward=0.25), reward=1.0, earlier=(earlier,)))
    assert (first.targets.tolist(), last.targets.tolist()) == ([9, 4], [2, 3, 6])
    np.testing.assert_allclose(first.earned, [0, 0.5])
    np.testing.assert_allclose(last.earned, [0, 0, 0.5])
    assert first.rollout is last.rollout


def test_a_sampled_token_has_all_that_is_known_of_it() -> None:
    with pytest.raises(ValueError, match="one log-probability"):
        Sampled((1, 2), (-1.0,), (0, 0))


TURNS = st.lists(
    st.one_of(
        st.lists(st.integers(1, 9), max_size=3).map(lambda ids: Observed(tuple(ids))),
        st.tuples(st.lists(st.integers(1, 9), max_size=4), st.floats(-2, 2)).map(
            lambda made: sampled(*made[0], reward=made[1])
        ),
    ),
    max_size=6,
)


@given(TURNS, st.floats(-3, 3))
def test_rows_of_any_turns_add_up(turns: list, reward: float) -> None:
    whole = rollout(*(turns or [sampled(4)]), reward=reward)
    if not any(turn.tokens for turn in whole.answers):
        return
    (row,) = traces_of(whole)
    assert row.earned.sum() == pytest.approx(reward, abs=1e-4)
    assert row.n_learned == whole.n_sampled
    assert row.model_input.length == len(row.targets)
    said = [token for turn in whole.turns for token in turn.tokens]
    assert [*row.model_input.to_ints(), int(row.targets[-1])] == [1, 2, 3, *said][: len(row.targets) + 1]
