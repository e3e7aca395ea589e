"""What each learner sends, beside its formula written out in plain numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tinker

from loreloop.learn.advantages import Overlong
from loreloop.learn.corrections import Correction
from loreloop.learn.learners.cispo import Cispo
from loreloop.learn.learners.distill import Distill
from loreloop.learn.learners.grpo import Grpo
from loreloop.learn.learners.hindsight import Hindsight, told
from loreloop.learn.learners.kl import KlBudget, KlPenalty, divergence
from loreloop.learn.learners.policy import Scored
from loreloop.learn.learners.ppo import Ppo
from loreloop.learn.learners.reinforce import Reinforce
from loreloop.learn.learners.value_adapter import Scale
from loreloop.learn.rollouts.traces import traces_of
from loreloop.learn.rollouts.values import Context, Observed
from loreloop.text.conversation import Conversation, Turn
from tests.learn.rollout_rig import rollout, sampled, scored, shifted, tensor

SHORT, LONG = (4,), (5, 6, 7)
GROUP = [scored(sampled(*SHORT), reward=1.0), scored(sampled(*LONG), reward=0.0)]
FLAT = [scored(sampled(8), reward=0.5), scored(sampled(9), reward=0.5)]


def test_grpo_divides_by_each_answers_tokens_and_by_the_answers() -> None:
    right, wrong = Grpo().datums([GROUP, FLAT])
    # (1 − ½)/½ = 1, over one token and two answers; (0 − ½)/½ = −1, over three tokens and two answers.
    np.testing.assert_allclose(tensor(right, "advantages"), [0, 0, 1 / 2])
    np.testing.assert_allclose(tensor(wrong, "advantages"), [0, 0, -1 / 6, -1 / 6, -1 / 6], rtol=1e-6)
    np.testing.assert_allclose(tensor(wrong, "logprobs"), [0, 0, -1, -1.1, -1.2], rtol=1e-6)
    assert tensor(wrong, "target_tokens").tolist() == [2, 3, 5, 6, 7]
    assert set(right.loss_fn_inputs) == {"target_tokens", "logprobs", "advantages"}
    assert Grpo().config == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}


def test_dapo_has_its_own_bounds_mean_and_penalty() -> None:
    dapo = Grpo.dapo(most_tokens=3, buffer=2)
    assert dapo.config == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.28}
    # The long answer loses a whole point, its group's rewards are 1 and −1, and the four tokens count the same.
    right, wrong = dapo.datums([GROUP])
    np.testing.assert_allclose(tensor(right, "advantages"), [0, 0, 1 / 4])
    np.testing.assert_allclose(tensor(wrong, "advantages"), [0, 0, -1 / 4, -1 / 4, -1 / 4])
    assert dapo.overlong == Overlong(3, 2)


def test_flat_groups_are_left_out_of_the_mean_too() -> None:
    alone = Grpo(normalisation="tokens").datums([GROUP])
    beside = Grpo(normalisation="tokens").datums([GROUP, FLAT])
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(tensor(one, "advantages"), tensor(other, "advantages"))


def test_a_correction_weighs_advantages_and_ratios_begin_at_the_trainer() -> None:
    group = [Scored(one.trace, trainer=shifted(one.trace, math.log(3))) for one in GROUP]
    learner = Grpo(normalisation="sum", correction=Correction("truncate"))
    assert learner.needs == {"trainer"}
    right, _ = learner.datums([group])
    np.testing.assert_allclose(tensor(right, "advantages")[-1], 2.0)  # 1 · min(3, 2)
    np.testing.assert_allclose(tensor(right, "logprobs")[-1], -1.0 + math.log(3), rtol=1e-6)


def test_a_trace_without_what_a_learner_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 'trainer'"):
        Grpo(correction=Correction("icepop")).datums([GROUP])


@pytest.mark.parametrize(("form", "pull"), [("square", 0.5), ("k3", 1 - math.exp(-0.5))])
def test_the_penalty_is_taken_off_every_token(form: str, pull: float) -> None:
    group = [Scored(one.trace, reference=shifted(one.trace, -0.5)) for one in GROUP]
    learner = Grpo(normalisation="sum", kl=KlPenalty(0.1, form))  # type: ignore[arg-type]
    assert learner.needs == {"reference"}
    right, wrong = learner.datums([group])
    np.testing.assert_allclose(tensor(right, "advantages")[-1], 1 - 0.1 * pull, rtol=1e-6)
    np.testing.assert_allclose(tensor(wrong, "advantages")[-3:], [-1 - 0.1 * pull] * 3, rtol=1e-6)
    assert tensor(right, "advantages")[:-1].tolist() == [0, 0]
    assert divergence(group) == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_the_strength_follows_the_budget() -> None:
    budget = KlBudget(0.1, rate=0.5, most=0.3)
    assert budget.next_strength(1.0, 0.11) == pytest.approx(1.05)
    assert budget.next_strength(1.0, 9.0) == pytest.approx(1.1)
    assert budget.next_strength(1.0, 0.0) == pytest.approx(0.9)
    assert not budget.is_spent(0.3)
    assert budget.is_spent(0.31)
    with pytest.raises(ValueError, match="not below it"):
        KlBudget(0.1, most=0.05)


def test_cispo_and_reinforce_send_plain_advantages_and_bounds() -> None:
    right, wrong = Cispo(normalisation="sum").datums([GROUP])
    assert (tensor(right, "advantages")[-1], tensor(wrong, "advantages")[-1]) == (1, -1)
    assert Cispo().config == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    right, wrong = Reinforce(normalisation="sum").datums([GROUP])
    assert (tensor(right, "advantages")[-1], tensor(wrong, "advantages")[-1]) == (0.5, -0.5)
    assert (Reinforce().loss, Reinforce().config) == ("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 2.0})
    assert Reinforce().needs == frozenset()


@pytest.mark.parametrize(("rule", "weight"), [("icepop", 1.5), ("geometric", 0.0), ("none", 1.0)])
def test_reinforce_with_other_rules_asks_the_trainer(rule: str, weight: float) -> None:
    group = [Scored(one.trace, trainer=shifted(one.trace, math.log(1.5))) for one in GROUP]
    learner = Reinforce(Correction(rule), normalisation="sum")  # type: ignore[arg-type]
    assert learner.loss == "importance_sampling"
    found = [tensor(datum, "advantages")[-1] for datum in learner.datums([group])]
    assert found == pytest.approx([0.5 * weight, -0.5 * weight] if weight else [])


def test_ppo_tells_the_parts_of_an_episode_apart() -> None:
    turns = (sampled(4, 5, reward=1.0), Observed((6,)), sampled(7))
    values = np.array([9, 9, 0.5, 0.25, 9, 0.125])  # what stands at prompt and observed places must not count
    one = scored(*turns, reward=3.0, values=values)
    ppo = Ppo(gamma=0.9, lam=0.8)
    d2 = 2.0 - 0.125
    d1 = 1.0 + 0.9 * 0.125 - 0.25
    d0 = 0.9 * 0.25 - 0.5
    wanted = [d0 + 0.72 * d1 + 0.72**2 * d2, d1 + 0.72 * d2, d2]
    np.testing.assert_allclose(ppo.estimates([one]), wanted, rtol=1e-6)
    np.testing.assert_allclose(
        ppo.value_targets([one.trace])[0], [0, 0, 0.9 * (1 + 0.9 * 2), 1 + 0.9 * 2, 0, 2], rtol=1e-6
    )
    (sent,) = ppo.datums([[one]])
    white = (np.array(wanted) - np.mean(wanted)) / np.std(wanted) / 3
    np.testing.assert_allclose(tensor(sent, "advantages"), [0, 0, white[0], white[1], 0, white[2]], rtol=1e-5)
    assert ppo.needs == {"values"}


def test_a_scale_shares_out_and_reads_back() -> None:
    scale = Scale((10, 11, 12), low=-1.0, high=1.0)
    values = np.array([-1.0, -0.25, 0.0, 0.9, 7.0])
    shares = scale.shares(values)
    np.testing.assert_allclose(shares[1], [0.25, 0.75, 0])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares @ scale.scores, [-1, -0.25, 0, 0.9, 1])
    with np.errstate(divide="ignore"):
        logprobs = np.log(shares) - 5.0  # as if most of the probability lay on words
    np.testing.assert_allclose(scale.read(logprobs), [-1, -0.25, 0, 0.9, 1])
    with pytest.raises(ValueError, match="all different"):
        Scale((1, 1))


def test_distillation_takes_the_teachers_nats() -> None:
    one = scored(sampled(4, 5), teacher=np.array([7, 7, -0.5, -99.0]))
    (sent,) = Distill(normalisation="sum").datums([[one]])
    np.testing.assert_allclose(tensor(sent, "advantages"), [0, 0, 0.5, -10.0], rtol=1e-6)
    group = [Scored(each.trace, teacher=shifted(each.trace, 0.0)) for each in GROUP]
    right, wrong = Distill(reward=0.5, normalisation="sum").datums([group])
    assert (tensor(right, "advantages")[-1], tensor(wrong, "advantages")[-1]) == (0.5, -0.5)


def test_hindsight_takes_what_the_outcome_makes_likelier() -> None:
    known = {"trainer": np.array([0, 0, -2.0, -1.0]), "hindsight": np.array([0, 0, -1.5, -1.01])}
    one = scored(sampled(4, 5), **known)
    (sent,) = Hindsight(normalisation="sum").datums([[one]])
    np.testing.assert_allclose(tensor(sent, "advantages"), [0, 0, 0.5, -0.01], rtol=1e-5)
    np.testing.assert_allclose(tensor(sent, "logprobs"), [0, 0, -2, -1])
    (sent,) = Hindsight(least=0.1, normalisation="sum").datums([[one]])
    np.testing.assert_allclose(tensor(sent, "advantages"), [0, 0, 0.5, 0])


def test_the_outcome_is_told_in_the_last_user_turn() -> None:
    asked = Conversation((Turn("system", "Be brief."), Turn("user", "2 + 2?")))
    system, user = told(asked, "No, it is 4.").turns
    assert system.content == "Be brief."
    assert user.content.startswith("2 + 2?\n")
    assert "No, it is 4." in user.content
    assert told(Conversation(()), "Wrong.").turns[0].role == "user"


def test_ppo_carries_what_an_episode_earned_back_over_its_rows() -> None:
    earlier = Context(tinker.ModelInput.from_ints([9, 9]), (sampled(4, 5),))
    first, last = traces_of(rollout(sampled(6), reward=1.0, earlier=(earlier,)))
    ppo = Ppo(gamma=0.5, lam=1.0)
    targets = ppo.value_targets([first, last])
    np.testing.assert_allclose(targets[0][-2:], [0.25, 0.5])
    np.testing.assert_allclose(targets[1][-1], 1.0)
    rows = [Scored(row, values=np.zeros(len(row.targets))) for row in (first, last)]
    np.testing.assert_allclose(ppo.estimates(rows), [0.25, 0.5, 1.0])
    assert len(ppo.datums([rows])) == 2


def test_ppo_bears_an_episode_of_which_nothing_is_learned() -> None:
    masked = scored(replace(sampled(4, 5), learned=False), reward=1.0, values=np.zeros(4))
    assert not Ppo().value_targets([masked.trace])[0].any()
    assert Ppo().datums([[masked]]) == []
    right = scored(sampled(6, 7), reward=1.0, values=np.array([0, 0, 0.5, 0.25]))
    assert len(Ppo().datums([[masked, right]])) == 1
