"""The linear reward: how well it learns a hidden taste, that it knows how sure it is, and that it survives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.reward_model import clean_auc, differences, events_of, item_of, one_seed, rows_of, taught
from bench.reward_population import Population
from loreloop.learn.loop.reward.events import NOBODY, LabelledEvent, Scored
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.keeping import versions
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings
from loreloop.protocol.errors import BadRequest

SMALL = LinearSettings(features=Features(bits=12))


def mark(
    number: int, answer: str, value: float, person: str = "ada", asked: str = "Is it so?", **fields
) -> LabelledEvent:
    return LabelledEvent(
        id=f"m{number}",
        number=number,
        person=person,
        created=1000.0 + number,
        metric="thumb",
        item=Scored(({"role": "user", "content": asked},), answer),
        value=value,
        **fields,
    )


def test_hidden_tastes_are_learned_and_a_flip_is_recovered_from() -> None:
    found = [one_seed(seed, n_held_out=500) for seed in range(1, 6)]
    assert np.mean([one.auc for one in found]) >= 0.85
    assert np.mean([one.error for one in found]) <= 0.08
    assert max(one.slowest for one in found) <= 5.0
    # The population is no feature in disguise: length alone ranks far worse, and so does the old taste after the flip.
    assert np.mean([one.length for one in found]) < 0.81
    assert np.mean([one.flipped for one in found]) < 0.25
    assert np.mean([one.after[-1] for one in found]) >= 0.83
    assert np.mean([one.auc for one in found]) > np.mean([one.adagrad for one in found])


def test_the_same_events_give_the_same_reward() -> None:
    events = events_of(Population(3).judged(60))
    one, other = LinearReward(SMALL), LinearReward(SMALL)
    taught(one, events, batch=7)
    taught(other, events, batch=7)
    assert one.version == other.version
    assert one.score([events[0].item]) == other.score([events[0].item])


def test_a_thousand_votes_of_one_person_move_no_more_than_the_cap() -> None:
    crowd = events_of(Population(5).judged(80))
    item = Scored(({"role": "user", "content": "What is 3 + 4?"},), "Buy gold now! It is 7.")

    def moved(n: int, person: str | None) -> float:
        reward = LinearReward(SMALL)
        reward.update(crowd)
        before = reward.head.raw(reward.row(item))
        votes = [mark(1000 + k, item.answer, 1.0, person or f"p{k}", "What is 3 + 4?") for k in range(n)]
        reward.update(votes)
        return reward.head.raw(reward.row(item)) - before

    cap = int(SMALL.person_cap)
    by_the_cap = moved(cap, "ada")
    assert moved(1000, "ada") <= by_the_cap * 1.01
    # It is the person that is held back, and not the number.
    assert moved(200, None) > 1.2 * by_the_cap


def test_few_people_cannot_make_a_reward_forget() -> None:
    reward = LinearReward(LinearSettings(features=Features(bits=12), person_cap=1000))
    population = Population(6)
    reward.update(events_of(population.judged(200)))
    population.flip()
    events = events_of(population.judged(60), first=1000)
    loud = [LabelledEvent(**{**fields_of(event), "person": f"loud{n % 2}"}) for n, event in enumerate(events)]
    assert "change" not in reward.update(loud).note


def fields_of(event: LabelledEvent) -> dict:
    return {name: getattr(event, name) for name in event.__struct_fields__}


def test_scores_are_in_spreads_of_the_reference_set() -> None:
    population = Population(7)
    reference = [item_of(one.first) for one in population.judged(50)]
    reward = LinearReward(SMALL, reference)
    for start in range(0, 120, 40):
        reward.update(events_of(population.judged(40), first=start))
        scores = np.array(reward.score(reference))
        assert abs(scores.mean()) < 1e-9
        assert abs(scores.std() - 1) < 1e-9


def test_versions_say_what_they_have_learned_from() -> None:
    events = events_of(Population(8).judged(30), first=10)
    reward = LinearReward(SMALL)
    assert reward.update([]).number == 0
    first = reward.update(events[:20])
    second = reward.update(events[20:])
    assert (first.number, second.number) == (1, 2)
    assert (second.data.n_events, second.data.first_number, second.data.last_number) == (30, 10, 39)
    assert second.data.n_persons == len({one.person for one in events})
    assert second.data.last_created == events[-1].created


def test_a_saved_reward_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    events = events_of(Population(9).judged(150))
    whole, first = LinearReward(SMALL), LinearReward(SMALL)
    taught(whole, events, 50)
    taught(first, events[:100], 50)
    first.save(tmp_path)
    second = LinearReward(SMALL)
    second.load(tmp_path)
    assert second.version == first.version
    second.update(events[100:])
    assert second.version.data == whole.version.data
    # What is kept as numbers is rounded to single precision.
    assert second.score([events[0].item]) == pytest.approx(whole.score([events[0].item]), abs=1e-3)
    assert second.ledger.spent == whole.ledger.spent


def test_a_damaged_version_gives_way_to_the_one_before(tmp_path: Path) -> None:
    events = events_of(Population(9).judged(60))
    reward = LinearReward(SMALL)
    for n in (20, 40, 60):
        reward.update(events[n - 20 : n])
        reward.save(tmp_path)
    weights = tmp_path / "000003" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / ".new-left-behind").mkdir()
    again = LinearReward(SMALL)
    again.load(tmp_path)
    assert again.version.number == 2


def test_old_versions_keep_their_records_and_lose_their_weights(tmp_path: Path) -> None:
    reward = LinearReward(SMALL)
    for number, event in enumerate(events_of(Population(9).judged(5)), 1):
        reward.update([event])
        reward.save(tmp_path)
        assert len(versions(tmp_path)) == number
    assert [path.parent.name for path in sorted(tmp_path.glob("*/weights.npz"))] == ["000003", "000004", "000005"]


def test_a_folder_of_another_kind_of_reward_is_refused(tmp_path: Path) -> None:
    reward = LinearReward(SMALL)
    reward.update(events_of(Population(9).judged(2)))
    reward.save(tmp_path)
    record = tmp_path / "000001" / "version.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {}).replace('"linear"', '"lora"'))
    with pytest.raises(BadRequest, match="holds versions of a lora reward, not of a linear one"):
        LinearReward(SMALL).load(tmp_path)
    shutil.rmtree(tmp_path / "000001")
    LinearReward(SMALL).load(tmp_path)


def test_a_forgotten_person_has_never_been_there() -> None:
    events = events_of(Population(4).judged(120))
    person = events[0].person
    settings = LinearSettings(
        features=Features(bits=12), centring=0
    )  # which is left out where events are learned again
    reward, without = LinearReward(settings, [one.item for one in events[:20]]), LinearReward(settings)
    without.reference, without.frozen = list(reward.reference), True
    reward.update(events)
    reward.forget([person])
    without.update([event for event in events if event.person != person])
    items = [event.item for event in events[:10]]
    assert reward.score(items) == pytest.approx(without.score(items))
    assert person not in reward.persons
    assert not [one for one in reward.learned if one.person == person]


def test_the_reference_set_forgets_too_and_takes_in_others(tmp_path: Path) -> None:
    settings = LinearSettings(features=Features(bits=12), centring=0, n_reference=10)
    events = [mark(n, f"It is {n}.", float(n % 2), f"p{n}") for n in range(20)]
    reward, without = LinearReward(settings), LinearReward(settings)
    reward.update(events[:10])
    reward.forget(["p3"], ["m5"])
    assert len(reward.reference) == 8
    reward.save(tmp_path)
    again = LinearReward(settings)
    again.load(tmp_path)
    for one in (reward, again):
        one.update(events[10:])
        assert len(one.reference) == 10
    without.update([one for one in events[:10] if one.id not in ("m3", "m5")])
    without.update(events[10:])
    items = [event.item for event in events[:10]]
    assert reward.score(items) == pytest.approx(without.score(items))
    assert again.score(items) == pytest.approx(without.score(items), abs=1e-4)


def test_what_was_learned_too_long_ago_to_be_kept_as_numbers_is_forgotten_as_well() -> None:
    reward = LinearReward(LinearSettings(features=Features(bits=12), buffer=5, n_reference=1))
    reward.update([mark(n, "Perhaps." if n == 1 else f"It is {n}.", 1.0, f"p{n}") for n in range(20)])
    assert "m1" not in reward.known()
    number = reward.version.number
    assert reward.forget(ids=["m1"]).number == number + 1
    without = LinearReward(LinearSettings(features=Features(bits=12), buffer=5))
    without.update([mark(n, f"It is {n}.", 1.0, f"p{n}") for n in range(15, 20)])
    perhaps = reward.row(mark(0, "Perhaps.", 1).item)
    assert reward.head.raw(perhaps) == pytest.approx(without.head.raw(perhaps))


def test_a_retracted_statement_is_unlearned_and_nothing_to_forget_changes_nothing() -> None:
    reward = LinearReward(SMALL)
    reward.update([mark(1, "Yes.", 1.0), mark(2, "No.", 0.0, "bob"), mark(3, "Perhaps.", 1.0, "eve")])
    version = reward.version
    assert reward.forget(persons=["nobody"]) == version
    before = reward.score([mark(0, "Perhaps.", 1).item])[0]
    assert reward.forget(ids=["m3"]).number == version.number + 1
    assert reward.score([mark(0, "Perhaps.", 1).item])[0] < before


def test_marks_are_learned_too_and_their_bias_is_no_part_of_a_score() -> None:
    reward = LinearReward(SMALL)
    answers = [f"The answer is {n}, as I have explained at length and with care." for n in range(30)]
    events = [mark(n, text, 1.0, f"p{n}") for n, text in enumerate(answers)]
    events += [mark(100 + n, f"{n}!", 0.9, f"p{n}") for n in range(30)]
    reward.update(events)
    long, short = reward.score([mark(0, answers[0], 1).item, mark(0, "3!", 1).item])
    assert long > short
    assert reward.head.mean[-1] > 0.1  # most marks are good, which says nothing of any one answer


def test_a_judge_and_code_have_no_cap() -> None:
    reward = LinearReward(SMALL)
    reward.update([mark(n, f"{n} it is.", 1.0, NOBODY) for n in range(60)])
    assert not reward.ledger.spent
    assert len(reward.learned) == 60
    assert reward.version.data.n_persons == 0


def test_an_event_costs_the_same_however_many_there_were() -> None:
    reward = LinearReward(LinearSettings(features=Features(bits=12), buffer=50, window=50))
    reward.update(events_of(Population(2).judged(120)))
    assert len(reward.learned) == 50
    assert len(reward.outcomes) == 50


def test_replay_is_repeatable() -> None:
    settings = LinearSettings(features=Features(bits=12), replay=2, replay_weight=0.1)
    events = events_of(Population(2).judged(50))
    one, other, without = LinearReward(settings), LinearReward(settings), LinearReward(SMALL)
    for reward in (one, other, without):
        reward.update(events)
    items = [event.item for event in events[:5]]
    assert one.score(items) == other.score(items)
    assert one.score(items) != without.score(items)


def test_empty_and_odd_answers_have_scores() -> None:
    reward = LinearReward(SMALL)
    reward.update(events_of(Population(2).judged(20)))
    odd = [
        Scored((), ""),
        Scored(({"role": "user", "content": None},), "\ud800\x00" + "x" * 100_000),
        Scored((), "[" * 5000),
    ]
    assert np.isfinite(reward.score(odd)).all()


def test_exams_are_of_what_was_never_seen() -> None:
    population = Population(1)
    learned = {one.first.prompt.text for one in population.judged(500)}
    exam = population.judged(500, held_out=True)
    assert not learned & {one.first.prompt.text for one in exam}
    reward = LinearReward(SMALL)
    assert clean_auc(differences(reward, rows_of(reward, exam)), exam) == 0.5
