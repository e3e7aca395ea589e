"""The stream of one loop: what it hears is learned once, unlearned when taken back, and survives."""

from pathlib import Path

import msgspec
import pytest

from bench.reward_population import Population
from loreloop.learn.loop.guard_looks import is_for_second
from loreloop.learn.loop.reward.events import prompt_key
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.golden import Agreement, GoldenRule
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings
from loreloop.learn.loop.reward.stream import RewardStream, Rules, alarm_of
from loreloop.protocol.episodes import Person, Turn
from loreloop.protocol.feedback import Feedback
from tests.learn.loop.recorded import said, turn

RULES = Rules(golden=GoldenRule(share=0.2, fewest_events=4, fewest_persons=3))


def stream_of(folder: Path, rules: Rules = RULES) -> RewardStream:
    return RewardStream(folder, LinearReward(LinearSettings(features=Features(bits=12))), rules)


def talk(n: int, first: int = 0) -> tuple[list[Turn], list[Feedback]]:
    """Turns of as many people, of which each has a preference for its correction."""
    turns = [
        turn(f"t{k}", f"It is {k}, I think.", asked=f"What is {k}?", user=f"u{k}") for k in range(first, first + n)
    ]
    return turns, [said(one.id, f"{k}.", "demonstration", who=f"u{k}") for k, one in enumerate(turns, first)]


def test_every_statement_is_learned_once_by_one_of_the_two_or_is_golden(tmp_path: Path) -> None:
    turns, feedback = talk(60)
    stream = stream_of(tmp_path)
    first = stream.hear(turns[:40], feedback[:40])
    again = stream.hear(turns, feedback)
    assert again.version.data.n_events > first.version.data.n_events
    assert stream.hear(turns, feedback).version == again.version
    proxy, second = stream.proxy.known(), stream.second.known()
    golden = {one.id for part in stream.golden.parts for one in part.events} | {
        one.id for one in stream.golden.kept.growing
    }
    assert not proxy & second
    assert not (proxy | second) & golden
    assert proxy | second | golden == {one.id for one in feedback}
    assert min(len(proxy), len(second), len(golden)) > 3
    assert stream.golden.newest is not None
    assert again.golden is not None


def test_a_stream_goes_on_after_a_death(tmp_path: Path) -> None:
    turns, feedback = talk(60)
    stream_of(tmp_path / "a").hear(turns[:40], feedback[:40])
    resumed, whole = stream_of(tmp_path / "a"), stream_of(tmp_path / "b")
    whole.hear(turns[:40], feedback[:40])
    whole.hear(turns, feedback)
    assert resumed.hear(turns, feedback).version.data == whole.proxy.version.data
    # Died behind the reward's version and before its own file: nothing is learned twice.
    (tmp_path / "a" / "trained.json").unlink()
    again = stream_of(tmp_path / "a")
    assert again.hear(turns, feedback).version.data == whole.proxy.version.data


def test_a_statement_that_comes_before_its_turn_is_learned_later(tmp_path: Path) -> None:
    turns, feedback = talk(20)
    stream = stream_of(tmp_path, Rules(golden=GoldenRule(share=0), second_share=0))
    stream.hear(turns[1:], feedback)
    assert len(stream.proxy.known()) == 19
    stream.hear(turns, feedback)
    assert len(stream.proxy.known()) == 20


def test_what_is_taken_back_is_unlearned_and_what_expires_is_not(tmp_path: Path) -> None:
    turns, feedback = talk(20)
    stream = stream_of(tmp_path, Rules(golden=GoldenRule(share=0), second_share=0))
    stream.hear(turns, feedback)
    taken_back = said(turns[3].id, "x", "demonstration", id=feedback[3].id, retracted=True)
    stream.hear(turns[5:], [*feedback, taken_back])
    assert {one.id for one in feedback} - stream.proxy.known() == {feedback[3].id}


def test_a_deleted_person_is_unlearned_everywhere(tmp_path: Path) -> None:
    turns, feedback = talk(40)
    stream = stream_of(tmp_path)
    stream.hear(turns, feedback)
    gone = [Person("key", one.person.user) for one in turns[:30]]
    stream.hear(turns, feedback, gone)
    stays = {one.id for one in feedback[30:]}
    golden = {one.id for part in stream.golden.parts for one in part.events} | {
        one.id for one in stream.golden.kept.growing
    }
    assert stream.proxy.known() | stream.second.known() | golden == stays


def test_statements_that_went_with_a_person_are_unlearned(tmp_path: Path) -> None:
    """What others said of a deleted person's turns leaves the feed with these, and nobody takes it back."""
    turns, feedback = talk(20)
    rules = Rules(golden=GoldenRule(share=0), second_share=0)
    stream = stream_of(tmp_path, rules)
    gone = turns[3]
    code = said(gone.id, 1.0, "verdict", source="code", who="tests")
    reviewed = said(gone.id, True, who="reviewer")
    twin = turn("twin", "Is it 3?", asked="What is 3?", user="eve")
    better = said("twin", gone.id, "preference", who="eve")
    feedback += [code, reviewed, better]
    stream.hear([*turns, twin], feedback)
    assert {code.id, reviewed.id, better.id} <= stream.proxy.known()
    left = [one for one in feedback if one.target_id != gone.id]
    stream.hear([*turns[:3], *turns[4:], twin], left, [gone.person])
    assert stream.proxy.known() == {one.id for one in left} - {better.id}
    assert not stream.heard.trained.keys() & {code.id, reviewed.id, better.id, feedback[3].id}


def test_nothing_of_a_deleted_person_is_on_the_disk(tmp_path: Path) -> None:
    turns, feedback = talk(40)
    stream = stream_of(tmp_path, Rules(golden=GoldenRule(share=0.3, fewest_events=4, fewest_persons=3)))
    for n in (20, 30, 40):
        stream.hear(turns[:n], feedback[:n])
    stream.golden.reserve([{"role": "user", "content": "reserved"}], ())
    before = disk(tmp_path)
    gone = [one.person for one in turns[:30]]
    stream.hear(turns[30:], feedback[30:], gone)
    after = disk(tmp_path)
    for one in turns[:30]:
        assert f'"{one.person.user}"' in before, "which proves that this looks at the right place"
        assert f'"{one.person.user}"' not in after
        assert f'"{feedback[turns.index(one)].id}"' not in after
    assert not [
        file for file in tmp_path.rglob("weights.npz") if int(file.parent.name) < newest_number(file.parents[1])
    ]


def disk(folder: Path) -> str:
    return "".join(file.read_text() for file in sorted(folder.rglob("*.json")))


def newest_number(folder: Path) -> int:
    return max(int(one.name) for one in folder.iterdir())


def test_a_deletion_is_made_good_after_a_death_in_the_middle_of_it(tmp_path: Path, monkeypatch) -> None:
    turns, feedback = talk(20)
    rules = Rules(golden=GoldenRule(share=0), second_share=0)
    stream = stream_of(tmp_path, rules)
    stream.hear(turns, feedback)

    def dies(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(stream.proxy, "save", dies)
    with pytest.raises(InterruptedError):
        stream.hear(turns[1:], feedback[1:], [turns[0].person])
    again = stream_of(tmp_path, rules)
    assert feedback[0].id in again.proxy.known()
    again.hear(turns[1:], feedback[1:], [turns[0].person])
    assert feedback[0].id not in stream_of(tmp_path, rules).proxy.known()


def test_a_prompt_that_was_trained_on_stays_one_when_its_statement_is_taken_back(tmp_path: Path) -> None:
    turns, feedback = talk(10)
    stream = stream_of(tmp_path, Rules(golden=GoldenRule(share=0), second_share=0))
    stream.hear(turns, feedback)
    back = said(turns[3].id, "x", "demonstration", id=feedback[3].id, retracted=True)
    label = said(turns[3].id, True, who="reviewer", tags={"golden": "1"})
    stream.hear(turns, [*feedback, back, label])
    assert feedback[3].id not in stream.proxy.known()
    assert not stream.golden.holds(turns[3].messages)


def test_a_prompt_that_is_held_out_later_is_unlearned(tmp_path: Path) -> None:
    turns, feedback = talk(20)
    held: set[str] = set()
    rules = Rules(golden=GoldenRule(share=0), second_share=0, held_out=lambda one: one[0]["content"] in held)
    stream = stream_of(tmp_path, rules)
    stream.hear(turns, feedback)
    assert feedback[4].id in stream.proxy.known()
    held.add("What is 4?")
    stream.hear(turns, feedback)
    assert {one.id for one in feedback} - stream.proxy.known() == {feedback[4].id}
    assert not stream.golden.ids(), "the file's prompts are no part of the set that grows by itself"


def test_a_reviewers_label_reserves_a_prompt_that_was_not_trained_on(tmp_path: Path) -> None:
    turns, feedback = talk(10)
    rules = Rules(golden=GoldenRule(share=0), second_share=0)
    stream = stream_of(tmp_path, rules)
    stream.hear(turns[:5], feedback[:5])
    late, early = (said(turns[k].id, True, who="reviewer", tags={"golden": "1"}) for k in (7, 2))
    stream.hear(turns, [*feedback, late, early])
    assert stream.golden.holds(turns[7].messages)
    assert not stream.golden.holds(turns[2].messages)
    assert feedback[7].id not in stream.proxy.known()
    assert prompt_key(turns[7].messages) not in stream.heard.prompts()


def test_a_label_on_a_whole_episode_reserves_the_prompts_of_its_turns(tmp_path: Path) -> None:
    own, later = turn("a", asked="first?", episode_id="chat"), turn("b", asked="then?", episode_id="chat")
    stranger = turn("c", asked="mine?", episode_id="chat", person=Person("other key", "ada"))
    label = said("chat", 1.0, "score", level="episode", who="reviewer", tags={"golden": "1"}, asker="key")
    stream = stream_of(tmp_path, Rules(golden=GoldenRule(share=0), second_share=0))
    stream.hear([own, later, stranger], [label, said("a", "4", "demonstration"), said("c", "5", "demonstration")])
    assert stream.golden.holds(own.messages)
    assert stream.golden.holds(later.messages)
    assert not stream.golden.holds(stranger.messages), "another key's episode may have the same id"
    assert stream.heard.prompts() == {prompt_key(stranger.messages)}


def test_what_a_policy_has_learned_is_in_no_golden_set(tmp_path: Path) -> None:
    """A method may learn from a prompt of which the reward has heard nothing, such as from a comment."""
    turns, feedback = talk(40)
    learned = frozenset(prompt_key(one.messages) for one in turns[:30])
    rules = Rules(golden=GoldenRule(share=0.5), second_share=0, trained=lambda: learned)
    stream = stream_of(tmp_path, rules)
    label = said(turns[2].id, True, who="reviewer", tags={"golden": "1"})
    stream.hear(turns, [*feedback, label])
    held = {prompt_key(one.item.messages) for one in (*stream.golden.latest(99),)}
    assert held
    assert not held & learned
    assert prompt_key(turns[2].messages) not in stream.golden.kept.reserved


def test_the_two_rewards_have_heard_other_people(tmp_path: Path) -> None:
    turns, feedback = talk(60)
    stream = stream_of(tmp_path)
    stream.hear(turns, feedback)
    assert not {one.person for one in stream.proxy.learned} & {one.person for one in stream.second.learned}
    assert stream.second.settings.features != stream.proxy.settings.features
    assert is_for_second.__doc__


def test_a_reward_that_turns_against_the_golden_set_is_told() -> None:
    assert "20% of pairs among the newest 40 golden statements" in alarm_of(Agreement(0.2, 0.05, None, 40, -3.8))
    assert "10% of marks" in alarm_of(Agreement(None, None, 0.1, 30, -3.7)), "marks alone are heard too"
    assert alarm_of(Agreement(0.45, 0.05, None, 40, -0.6)) == alarm_of(None) == ""
    assert alarm_of(Agreement(0.0, 0.0, None, 1, -1.0)) == "", "one pair says nothing"


def lived(folder: Path, seed: int, *, turned: bool = False, persons: int = 40) -> list[str]:
    """The alarms of a stream that hears 25 statements at a time; with `turned`, tastes flip in the middle."""
    population = Population(seed, n_persons=persons)
    rules = Rules(golden=GoldenRule(share=0.2), second_share=0)
    settings = LinearSettings(features=Features(bits=12), person_cap=1e9)
    stream = RewardStream(folder, LinearReward(settings), rules)
    judged = population.judged(300)
    if turned:
        population.flip()
        judged += population.judged(300)
    turns, statements, alarms = list[Turn](), list[Feedback](), list[str]()
    for n, one in enumerate(judged):
        asked = f"{one.first.prompt.text} ({n})"  # so that a prompt's side does not depend on its like
        for side, written in (("a", one.first), ("b", one.second)):
            turns.append(turn(f"{n}{side}", written.text, asked=asked, user=one.person))
        better, worse = ("a", "b") if one.said else ("b", "a")
        statements.append(said(f"{n}{better}", f"{n}{worse}", "preference", who=one.person))
        if n % 25 == 24:
            alarms.append(stream.hear(turns, statements).alarm)
    return [alarm for alarm in alarms if alarm]


@pytest.mark.parametrize("turned", [False, True])
def test_a_reward_that_follows_people_raises_no_alarm(tmp_path: Path, turned: bool) -> None:
    assert not lived(tmp_path, 7, turned=turned)


class Contrary(LinearReward):
    """Learns as it should, and gives out the opposite."""

    def score(self, items):
        return [-each for each in super().score(items)]


def test_a_reward_that_people_contradict_is_stopped_with_few_persons_too(tmp_path: Path) -> None:
    """Of four persons no golden part ever closes."""
    turns, feedback = talk(120)
    few = [msgspec.structs.replace(one, who=f"u{n % 4}") for n, one in enumerate(feedback)]
    rules = Rules(golden=GoldenRule(share=0.3), second_share=0)
    stream = RewardStream(tmp_path, Contrary(LinearSettings(features=Features(bits=12))), rules)
    heard = stream.hear(turns, few)
    assert stream.golden.newest is None
    assert "worse than a coin" in heard.alarm
