"""Lessons are made up, advantages stay within one state, and a whole course teaches a small policy what to keep."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence

import pytest

from loreloop.memory.evaluation import synthetic
from loreloop.memory.generative import faithful
from loreloop.memory.learned import NO, YES, question_of
from loreloop.memory.learning import course, exam, judging, lessons, practice
from loreloop.memory.learning.groups import SampledAnswer, Tried, advantages, merged
from loreloop.memory.learning.refilling import Refills
from loreloop.memory.state import MemoryState
from tests.memory.conversations import count


def sampled(text: str, *, ended: bool = True) -> SampledAnswer:
    return SampledAnswer(text, (1,), (-0.5,), ended)


def test_advantages_compare_answers_from_one_state_only() -> None:
    assert advantages([1.0, 0.0, 0.5]) == [0.5, -0.5, 0.0]


def test_equal_answers_are_one_with_the_sum_of_their_advantages() -> None:
    tried = [Tried("a", sampled(YES), 0.5), Tried("a", sampled(YES), 0.25), Tried("a", sampled(NO), -0.75)]
    assert merged(tried) == [Tried("a", sampled(YES), 0.75), Tried("a", sampled(NO), -0.75)]
    unanimous = [Tried("a", sampled(YES), value) for value in advantages([1.0, 0.0, 0.7])]
    assert merged(unanimous) == []


def test_the_heads_lessons_say_yes_to_facts_and_to_what_they_replaced() -> None:
    conversation = synthetic.stream(3, 200)
    kept = lessons.worth_keeping(conversation)
    gone = [value for question in conversation.questions if question.kind == "updated" for value in question.gone]
    assert gone
    for value in gone:
        number = value.rsplit(" ", 1)[-1]
        assert any(number in conversation.turns[turn].text for turn in kept)
    examples = lessons.of_the_head(1)
    answers = [example.answer for example in examples]
    assert answers.count(YES) == answers.count(NO) > 20
    assert all(example.answer == YES for example in examples if "My locker code is" in example.prompt)


def test_the_refills_lessons_fit_and_lose_nothing_hard() -> None:
    examples = lessons.of_the_refill(1, count)
    assert len(examples) > 20
    for example in examples:
        original = example.prompt.split("said: ")[-1].split("\nKeep all names")[0]
        answer = example.answer.removesuffix(lessons.END)
        assert faithful(answer, original)
        assert count(answer) < count(original)
        assert not example.prompt.endswith(" ")


def test_lessons_rewards_and_exams_share_no_conversation() -> None:
    exams = {one for some in exam.conversations().values() for one in some}
    taught = {practice.needles(seed, turns) for seed, turns in course.HEAD.conversations()}
    taught |= {practice.needles(seed, turns) for seed, turns in course.REFILL.conversations()}
    taught |= {synthetic.needles(practice.LESSON_SEED + seed, exam.TURNS, 6) for seed in range(100)}
    assert not exams & taught


def test_rolls_of_a_stretch_differ_in_its_verdicts_alone() -> None:
    """With verdicts that say yes to facts in one roll and no in the other, that one is better, in its own state."""
    conversation = practice.needles(7, 40)
    facts = {turn for question in conversation.questions for turn in question.evidence}
    fact_lines = {judging.question_about(conversation.turns[number]) for number in facts}

    def answers(prompts: Sequence[str], n: int, most: Sequence[int]) -> list[list[SampledAnswer]]:
        assert (n, set(most)) == (2, {1})
        return [
            [sampled(YES if one in fact_lines else NO), sampled(NO if one in fact_lines else YES)] for one in prompts
        ]

    rolls = judging.Rolls(practice.budget_for(40), stretch=20, size=2)
    tried, mean_reward = judging.tried(conversation, rolls, answers, count)
    assert 0 < mean_reward < 1
    right = [one.advantage for one in tried if (one.prompt in fact_lines) == (one.answer.text == YES)]
    wrong = [one.advantage for one in tried if (one.prompt in fact_lines) != (one.answer.text == YES)]
    assert sum(right) == pytest.approx(-sum(wrong))
    assert sum(right) > 0
    assert min(right) >= 0 >= max(wrong)


def test_a_refill_is_marked_by_what_it_keeps_and_by_what_stands_in_the_end() -> None:
    refills = Refills(practice.needles(5, 40), practice.roomy_budget_for(40), count)
    evidence = {turn for question in refills.conversation.questions for turn in question.evidence}
    chance = next(one for one in refills.chances if evidence.issuperset(one.segment.turns))
    small = lessons.ExtractiveRefill(count).condensed(chance.segment)
    good, bad = (refills.marks(chance, sampled(text)) for text in (small.text, "well"))
    assert (good.taken, bad.taken, bad.words) == (True, False, 0.0)
    assert good.evidence == bad.evidence + 1
    cut_off = refills.marks(chance, sampled(small.text, ended=False))
    assert cut_off.reward == good.reward - 0.5
    tried, share = refills.tried([chance], [[sampled(small.text), sampled("well")]])
    assert share == 0.5
    assert tried[0].advantage == -tried[1].advantage > 0


class Policy:
    """Says yes with a probability that it has for each first word of a line: the smallest learner there is."""

    def __init__(self) -> None:
        self.logits: defaultdict[str, float] = defaultdict(float)
        self.draw = random.Random(0)

    def logit(self, question: str) -> float:
        return self.logits[self.kind(question)]

    def kind(self, question: str) -> str:
        return "mine" if "y " in question[:12] or "Note" in question[:12] else question.split()[0]

    def odds(self, questions: Sequence[str]) -> list[float]:
        return [self.logit(question) for question in questions]

    def answers(
        self, prompts: Sequence[str], n: int, most: Sequence[int], temperature: float = 1.0
    ) -> list[list[SampledAnswer]]:
        probabilities = [1 / (1 + math.exp(-self.logit(prompt))) for prompt in prompts]
        return [[sampled(YES if self.draw.random() < p else NO) for _ in range(n)] for p in probabilities]

    def imitate(self, examples: Sequence[lessons.Example], learning_rate: float) -> float:
        return 1.0

    def reinforce(self, tried: Sequence[Tried], learning_rate: float) -> None:
        for one in tried:
            self.logits[self.kind(one.prompt)] += one.advantage * (1 if one.answer.text == YES else -1)

    def save(self, name: str) -> str:
        return f"tinker://{name}"


def test_rewards_over_whole_conversations_teach_what_to_keep() -> None:
    lines: list[str] = []
    plan = course.Plan(steps=2, batch=8, lengths=((40, 4), (60, 4)), size=8)
    record = course.Course(Policy(), count, plan, lines.append).head()
    before, after = (
        next(one.measures["needles"].mean for one in record.sittings if one.when == when)
        for when in ("before", "after rewards")
    )
    assert after > before + 0.1
    assert [reward.turns for reward in record.rewards] == [40] * 4 + [60] * 4
    assert record.path == "tinker://memory-head"
    assert len(lines) == 2 + 8 + 3


def test_going_on_from_a_state_leaves_it_as_it_was() -> None:
    conversation = practice.needles(2, 40)
    begun = judging.went_on(MemoryState(64), conversation.turns[:20], {}, count)
    first = judging.went_on(begun, conversation.turns[20:], {}, count)
    judging.went_on(begun, conversation.turns[20:], {question_of("user: x"): 1.0}, count)
    assert judging.went_on(begun, conversation.turns[20:], {}, count) == first
