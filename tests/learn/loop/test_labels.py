"""What statements become events, which way round, and which are left out and why."""

import pytest

from loreloop.learn.loop.reward.events import NOBODY, prompt_key
from loreloop.learn.loop.reward.labels import KeptOut, LabelRules, labels_of
from loreloop.protocol.episodes import Person
from loreloop.protocol.feedback import Metric
from tests.learn.loop.recorded import said, turn


def test_a_thumb_and_a_score_are_marks() -> None:
    found = labels_of([turn("a"), turn("b", "5")], [said("a", True), said("b", 0.25, "score")])
    assert [(one.item.answer, one.value, one.worse) for one in found.events] == [
        ("It is 4.", 1, None),
        ("5", 0.25, None),
    ]


def test_an_edit_is_a_preference_for_the_corrected_answer() -> None:
    (only,) = labels_of([turn("a")], [said("a", "4", "demonstration")]).events
    assert only.worse is not None
    assert (only.item.answer, only.worse.answer) == ("4", "It is 4.")


def test_a_preference_names_the_worse_turn() -> None:
    (only,) = labels_of([turn("a"), turn("b", "5")], [said("b", "a", "preference")]).events
    assert only.worse is not None
    assert (only.item.answer, only.worse.answer) == ("5", "It is 4.")


def test_a_preference_between_answers_to_different_prompts_says_nothing() -> None:
    found = labels_of([turn("a"), turn("b", asked="And 3 + 3?")], [said("b", "a", "preference")])
    assert not found.events
    assert found.left_out == {"different_prompts": 1}


def test_the_newest_statement_of_the_same_person_counts() -> None:
    found = labels_of([turn("a")], [said("a", True), said("a", False)])
    assert [one.value for one in found.events] == [0]
    assert found.left_out == {"overridden": 1}


def test_what_is_overridden_by_name_counts_no_more() -> None:
    first = said("a", True, who="ada")
    found = labels_of([turn("a")], [first, said("a", False, who="moderator", overrides=first.id)])
    assert [one.person for one in found.events] == ["moderator"]


def test_a_retracted_statement_counts_no_more_and_brings_nothing_back() -> None:
    first = said("a", True)
    second = said("a", False, overrides=first.id)
    taken_back = said("a", False, id=second.id, overrides=first.id, retracted=True)
    found = labels_of([turn("a")], [first, second, taken_back])
    assert not found.events
    assert found.left_out == {"overridden": 1, "retracted": 1}


def test_statements_that_were_learned_from_and_count_no_more_are_told() -> None:
    first = said("a", True)
    found = labels_of([turn("a")], [first, said("a", False)], since=first.number)
    assert found.withdrawn == {first.id}
    assert [one.value for one in found.events] == [0]


def test_only_what_came_since_is_new() -> None:
    first, second = said("a"), said("b")
    found = labels_of([turn("a"), turn("b", "5")], [first, second], since=first.number)
    assert [one.id for one in found.events] == [second.id]
    assert not found.withdrawn


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"consent": False}, "no_consent"),
        ({"fate": "no_consent"}, "no_consent"),
        ({"fate": "unfinished"}, "unfinished"),
        ({"side": True}, "side"),
        ({"fate": "expired"}, "expired"),
        ({"fate": "dropped"}, "dropped"),
        ({"user": "gone"}, "deleted_person"),
    ],
)
def test_what_must_not_be_trained_on_is_left_out(fields: dict, reason: str) -> None:
    kept_out = KeptOut(deleted=[Person("key", "gone")])
    found = labels_of([turn("a", **fields)], [said("a"), said("a", "4", "demonstration")], kept_out=kept_out)
    assert not found.events
    assert not found.golden
    assert found.left_out == {reason: 2}


def test_what_a_deleted_person_says_of_others_turns_is_left_out() -> None:
    kept_out = KeptOut(deleted=[Person("key", "gone")])
    found = labels_of([turn("a")], [said("a", who="gone")], kept_out=kept_out)
    assert found.left_out == {"deleted_person": 1}


def test_a_preference_over_a_turn_without_consent_is_left_out() -> None:
    found = labels_of([turn("a", consent=False), turn("b", "5")], [said("b", "a", "preference")])
    assert found.left_out == {"no_consent": 1}


def test_held_out_prompts_are_never_among_what_is_learned() -> None:
    golden, other = turn("a"), turn("b", asked="And 3 + 3?")
    key = prompt_key(golden.messages)
    kept_out = KeptOut(held_out=lambda messages: prompt_key(messages) == key)
    found = labels_of([golden, other], [said("a"), said("b"), said("a", "4", "demonstration")], kept_out=kept_out)
    assert [one.item.messages for one in found.events] == [other.messages]
    assert [one.item.messages for one in found.golden] == [golden.messages] * 2


def test_the_same_person_on_the_same_answer_is_heard_once() -> None:
    found = labels_of([turn("a"), turn("b"), turn("c")], [said("a"), said("b"), said("c")])
    assert len(found.events) == 1
    assert found.left_out == {"repeated": 2}


def test_where_people_disagree_nobody_is_followed() -> None:
    votes = [said("a", value, who=who) for who, value in (("x", True), ("y", False), ("z", True), ("w", False))]
    found = labels_of([turn("a")], votes)
    assert not found.events
    assert found.left_out == {"low_agreement": 4}
    assert len(labels_of([turn("a")], [*votes, said("a", who="v")], LabelRules(agreement=0.5)).events) == 5


def test_contradicting_preferences_of_several_people_are_left_out() -> None:
    turns = [turn("a"), turn("b", "5")]
    votes = [said("a", "b", "preference", who="x"), said("b", "a", "preference", who="y")]
    assert labels_of(turns, votes).left_out == {"low_agreement": 2}


def test_a_statement_on_an_episode_is_shared_out_among_its_turns() -> None:
    turns = [turn("a", episode_id="e"), turn("b", "5", episode_id="e"), turn("t", "Title", episode_id="e", side=True)]
    found = labels_of(turns, [said("e", True, level="episode")])
    assert [(one.item.answer, one.weight) for one in found.events] == [("It is 4.", 0.5), ("5", 0.5)]


def test_declared_metrics_count_where_they_are_named_and_in_their_direction() -> None:
    rules = LabelRules(metrics={"rude": 1.0})
    metrics = {"rude": Metric("rude", "boolean", optimize="min")}
    found = labels_of([turn("a")], [said("a", True, "rude"), said("a", True, "thumb")], rules, metrics=metrics)
    assert [one.value for one in found.events] == [0]
    assert found.left_out == {"not_a_label": 1}


def test_numbers_outside_of_0_to_1_are_left_out() -> None:
    assert labels_of([turn("a")], [said("a", 7.5, "score")]).left_out == {"out_of_range": 1}


def test_sources_count_differently_and_code_is_nobody() -> None:
    statements = [said("a", source="human"), said("b", source="implicit"), said("c", 1.0, "verdict", source="code")]
    found = labels_of([turn("a"), turn("b", "5"), turn("c", "6")], statements)
    assert [one.weight for one in found.events] == [1.0, 0.25, 1.0]
    assert [one.person for one in found.events] == ["ada", "ada", NOBODY]


def test_a_statement_on_an_unknown_turn_is_counted() -> None:
    assert labels_of([], [said("a"), said("b", "a", "preference")]).left_out == {"unknown_turn": 2}


@pytest.mark.parametrize("is_held_out", [False, True])
def test_a_label_to_measure_with_is_never_learned_from(is_held_out: bool) -> None:
    label = said("a", True, who="reviewer", tags={"golden": "1"})
    kept_out = KeptOut(held_out=lambda messages: is_held_out)
    found = labels_of([turn("a")], [label], kept_out=kept_out)
    assert not found.events
    assert [event.id for event in found.golden] == [label.id] * is_held_out
    assert found.left_out == ({} if is_held_out else {"golden": 1})
    assert not found.withdrawn
