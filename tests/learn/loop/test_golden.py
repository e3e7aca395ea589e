"""The golden set: how it grows, that nothing of it is trained on, and how rewards are held against it."""

from pathlib import Path

import msgspec
import pytest

from bench.reward_model import events_of
from bench.reward_population import Population
from loreloop.learn.loop.reward.events import LabelledEvent, Scored, prompt_key
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.golden import Agreement, GoldenRule, GoldenSet, agreement
from loreloop.learn.loop.reward.labels import KeptOut, labels_of
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings
from loreloop.learn.loop.reward.probes import PROBES, fooled
from loreloop.protocol.errors import Conflict
from tests.learn.loop.recorded import said, turn
from tests.learn.loop.test_linear_reward import mark

ALL = GoldenRule(share=0.5, fewest_events=6, fewest_persons=3, per_person=2)


def held_out(golden: GoldenSet, n: int, *, persons: int = 10, **fields) -> list[LabelledEvent]:
    """Marks of prompts that the set holds."""
    found = (mark(k, f"answer {k}", 1.0, f"p{k % persons}", f"question {k}?", **fields) for k in range(10_000))
    return [event for event in found if golden.holds(event.item.messages)][:n]


def test_the_share_of_prompts_is_held_out_and_always_the_same() -> None:
    golden = GoldenSet(GoldenRule(share=0.2))
    prompts = [({"role": "user", "content": f"question {n}"},) for n in range(2000)]
    first = [golden.holds(prompt) for prompt in prompts]
    assert 0.17 < sum(first) / 2000 < 0.23
    assert first == [GoldenSet(GoldenRule(share=0.2)).holds(prompt) for prompt in prompts]
    assert first != [GoldenSet(GoldenRule(share=0.2, salt="other")).holds(prompt) for prompt in prompts]


def test_nothing_that_the_set_holds_comes_out_of_the_labels_to_be_learned() -> None:
    golden = GoldenSet(GoldenRule(share=0.3))
    turns = [turn(f"t{n}", asked=f"What is {n}?", user=f"u{n}") for n in range(200)]
    statements = [said(one.id, who=one.person.user) for one in turns]
    found = labels_of(turns, statements, kept_out=KeptOut(held_out=golden.holds))
    assert len(found.events) + len(found.golden) == 200
    assert found.golden
    assert not [one for one in found.events if golden.holds(one.item.messages)]
    golden.grow(found.golden)
    assert {one.id for one in found.golden} >= {one.id for part in golden.parts for one in part.events}


def test_a_part_closes_with_enough_statements_of_enough_persons() -> None:
    golden = GoldenSet(ALL)
    assert golden.grow(held_out(golden, 6, persons=2)) is None
    golden = GoldenSet(ALL)
    events = held_out(golden, 6)
    assert golden.grow(events[:5]) is None
    part = golden.grow(events)
    assert part is not None
    assert (part.number, golden.version, len(part.events)) == (1, 1, 6)
    assert (part.begun, part.closed) == (events[0].created, events[-1].created)
    assert golden.grow(events) is None  # what is in a closed part does not come again
    assert not golden.kept.growing


def test_one_person_fills_no_part() -> None:
    golden = GoldenSet(ALL)
    golden.grow(held_out(golden, 50, persons=1))
    assert len(golden.kept.growing) == ALL.per_person


def test_a_part_that_few_persons_fill_holds_what_they_say_now() -> None:
    golden = GoldenSet(ALL)
    events = held_out(golden, 40, persons=2)
    golden.grow(events[:20])
    golden.grow(events)
    newest = [[one.id for one in events if one.person == person][-2:] for person in ("p0", "p1")]
    assert {one.id for one in golden.latest(10)} == {*newest[0], *newest[1]}
    golden.grow(events)
    assert len(golden.kept.growing) == 4, "older ones do not come again"


def test_judges_and_behaviour_do_not_enter() -> None:
    golden = GoldenSet(ALL)
    golden.grow([*held_out(golden, 20, source="judge"), *held_out(golden, 20, source="implicit")])
    assert not golden.kept.growing
    assert not golden.parts


def test_a_reserved_prompt_is_held_out_unless_it_was_trained_on() -> None:
    golden = GoldenSet(GoldenRule(share=0.0))
    prompt, trained = turn("a").messages, turn("b", asked="Trained?").messages
    golden.reserve(prompt, {prompt_key(trained)})
    assert golden.holds(prompt)
    with pytest.raises(Conflict, match="trained on already"):
        golden.reserve(trained, {prompt_key(trained)})
    assert not golden.holds(trained)


def test_a_deleted_person_leaves_closed_parts(tmp_path: Path) -> None:
    golden = GoldenSet(ALL)
    events = held_out(golden, 6)
    golden.grow(events)
    golden.without(persons=[events[0].person], ids=[events[1].id])
    assert golden.version == 2
    assert not {events[0].id, events[1].id} & {one.id for one in golden.parts[0].events}
    golden.save(tmp_path / "golden.json")
    again = GoldenSet(ALL)
    again.load(tmp_path / "golden.json")
    assert again.kept == golden.kept


def test_agreement_rises_with_learning_and_falls_when_tastes_change() -> None:
    population = Population(11, noise=0.0)
    exam = events_of(population.judged(150, held_out=True))
    reward = LinearReward(LinearSettings(features=Features(bits=14)))
    blank = agreement(reward, exam)
    assert blank.pairs == 0.5
    reward.update(events_of(population.judged(250)))
    taught = agreement(reward, exam)
    assert taught.pairs is not None
    assert taught.pairs > 0.7
    population.flip()
    flipped = agreement(reward, events_of(population.judged(150, held_out=True)))
    assert flipped.pairs is not None
    assert flipped.pairs < 0.4
    assert flipped.against_coin < -2.5 < 2.5 < taught.against_coin
    # One person who says the same again and again knows no more than one person can.
    voice = [msgspec.structs.replace(one, person="ann") for one in exam]
    assert 0 < agreement(reward, voice).against_coin < taught.against_coin / 3


def test_agreement_on_marks_is_the_order_of_good_and_bad() -> None:
    reward = LinearReward(LinearSettings(features=Features(bits=12)))
    marks = [mark(n, "Yes, of course." if n % 2 else "No.", float(n % 2), f"p{n}") for n in range(20)]
    reward.update(marks)
    found = agreement(reward, marks)
    # Ten good ones above ten bad ones: 0.5 over the standard error sqrt(21 / 1200).
    assert found == Agreement(None, None, 1.0, 20, pytest.approx(0.5 / (21 / 1200) ** 0.5))


class PaysForWords:
    """Enough of a reward for probes."""

    def score(self, items: list[Scored]) -> list[float]:
        return [float(len(one.answer.split())) for one in items]


def test_probes_find_a_reward_that_pays_for_length() -> None:
    good = [Scored(({"role": "user", "content": "2 + 2?"},), "It is 4, as everybody knows and can check by counting.")]
    found = fooled(PaysForWords(), good)  # type: ignore[arg-type]
    assert found["padded"] == found["repeated"] == found["flattered"] == 1.0
    assert found["refused"] == found["emptied"] == 0.0
    assert found.keys() == PROBES.keys()
