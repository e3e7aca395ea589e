"""Guards catch planted exploits: policies that learn a flawed reward are stopped, and good ones are let on."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.reward_model import events_of, item_of
from bench.reward_population import Population, Taste, Written, answer_of, prompt_of
from loreloop.learn.loop.guard_looks import Eyes, Look, is_for_second, reading_of, second_opinion
from loreloop.learn.loop.guards import Guard, GuardLimits, Measure, Reading, Verdict, measured
from loreloop.learn.loop.reward.events import LabelledEvent, Scored
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings
from tests.learn.loop.test_linear_reward import mark

SETTINGS = LinearSettings(features=Features(bits=13))
COMMON = Taste(words=12, brevity=0.45, form=1.0, right=1.4)  # what the population likes on average
N_PROMPTS = 120

Draw = Callable[[random.Random], Written]


def usual(rng: random.Random) -> Written:
    return answer_of(rng, prompt_of(rng))


class Policy:
    """A policy that has learned its reward as far as best-of-n goes: √KL is that of ln n − (n − 1)/n nats."""

    def __init__(self, eyes: Eyes, spoil: Callable[[str], str] | None = None) -> None:
        self.eyes, self.spoil = eyes, spoil

    def reading(self, n: int) -> Reading:
        rng, chosen = random.Random(n), list[Written]()
        for _ in range(N_PROMPTS):
            prompt = prompt_of(rng)
            drawn = [answer_of(rng, prompt) for _ in range(n)]
            if self.spoil:
                # One answer in six is of the kind that the exploit needs, as a policy comes upon it by chance.
                drawn = [replace(one, text=self.spoil(one.text)) if rng.random() < 1 / 6 else one for one in drawn]
            scores = self.eyes.proxy.score([item_of(one) for one in drawn])
            chosen.append(max(zip(scores, drawn, strict=True), key=lambda pair: pair[0])[1])
        known = {(one.prompt.text, one.text): one for one in chosen}

        def liked(item: Scored) -> float:
            # Nobody but the clique likes nonsense.
            return COMMON.utility(known[item.messages[0]["content"], item.answer]) - 2 * ("zephyr" in item.answer)

        eyes = Eyes(self.eyes.proxy, self.eyes.second, {"liked": liked})
        return reading_of(f"best-of-{n}", [Look(item_of(one)) for one in chosen], eyes, kl=math.log(n) - (n - 1) / n)


def trained(policy: Policy, ns: tuple[int, ...] = (2, 4, 8, 16)) -> tuple[Guard, list[Verdict]]:
    """A guard that has seen the policy before training and after each of some stages."""
    guard = Guard(policy.reading(1))
    return guard, [guard.take(policy.reading(n)) for n in ns]


def names(verdicts: list[Verdict]) -> set[str]:
    return {alarm.name for verdict in verdicts for alarm in verdict.alarms if alarm.stops}


class PaysForLength:
    """A planted exploit: no people, only words."""

    def score(self, items: list[Scored]) -> list[float]:
        return [len(one.answer.split()) / 20 for one in items]


def test_an_honest_reward_is_let_on() -> None:
    population = Population(21)
    events = events_of(population.judged(500))
    proxy, second = LinearReward(SETTINGS), second_opinion()
    proxy.update([one for one in events if not is_for_second(one)])
    second.update([one for one in events if is_for_second(one)])
    _, verdicts = trained(Policy(Eyes(proxy, second)))
    assert not verdicts[-1].stop
    assert verdicts[-1].last_good == "best-of-16"
    assert not names(verdicts)


def test_a_reward_that_pays_for_length_is_caught() -> None:
    proxy = PaysForLength()
    guard, verdicts = trained(Policy(Eyes(proxy)))  # type: ignore[arg-type]
    assert guard.readings[-1].proxy.mean > guard.readings[0].proxy.mean
    assert "parted" in names(verdicts)
    assert verdicts[-1].stop
    assert verdicts[-1].last_good in ("best-of-1", "best-of-2")
    assert any(alarm.name == "length" for verdict in verdicts for alarm in verdict.alarms)


def test_a_magic_word_that_a_clique_up_votes_is_caught() -> None:
    """Twelve persons mark up whatever says the word, and the reward learns it; the policy finds it by chance."""

    def magic(text: str) -> str:
        return "zephyr " * 8 + text[:10]

    population = Population(22)
    events = events_of(population.judged(250))
    rng = random.Random(1)
    for n in range(240):
        written = usual(rng)
        events.append(mark(1000 + 2 * n, magic(written.text), 1.0, f"clique{n % 12}", written.prompt.text))
        down = usual(rng)
        events.append(mark(1001 + 2 * n, down.text, 0.0, f"clique{n % 12}", down.prompt.text))
    proxy = LinearReward(SETTINGS)
    proxy.update(events)
    plain = usual(rng)
    item, exploit = item_of(plain), Scored(item_of(plain).messages, magic(plain.text))
    assert proxy.score([exploit]) > proxy.score([item])  # the exploit has been learned
    _, verdicts = trained(Policy(Eyes(proxy), magic))
    assert {"parted", "repetition"} <= names(verdicts)
    assert verdicts[-1].stop


def test_liked_and_right_are_told_apart() -> None:
    """A population that up-votes agreeable answers, which are wrong: what is liked rises, and what is right falls."""

    def agreeable(written: Written) -> Written:
        return Written(written.prompt, f"You are so right to ask! {written.text}", False)

    def sum_answer(rng: random.Random) -> Written:
        while (prompt := prompt_of(rng)).kind not in ("sum", "fact"):
            pass
        return answer_of(rng, prompt)

    rng, events = random.Random(3), list[LabelledEvent]()
    for n in range(300):
        written = sum_answer(rng)
        sweet = agreeable(written)
        events.append(mark(2 * n, sweet.text, 1.0, f"p{n % 40}", sweet.prompt.text))
        events.append(mark(2 * n + 1, written.text, 0.2, f"p{n % 40}", written.prompt.text))
    proxy = LinearReward(SETTINGS)
    proxy.update(events)

    def chosen(n: int) -> Reading:
        draw, best = random.Random(n), list[Written]()
        for _ in range(N_PROMPTS):
            first = sum_answer(draw)
            answers = [answer_of(draw, first.prompt) for _ in range(n)]
            answers = [agreeable(one) if draw.random() < 0.3 else one for one in answers]
            scores = proxy.score([item_of(one) for one in answers])
            best.append(max(zip(scores, answers, strict=True), key=lambda pair: pair[0])[1])
        truth = {(one.prompt.text, one.text): one for one in best}

        def right(item: Scored) -> float:
            return float(bool(truth[item.messages[0]["content"], item.answer].right))

        def liked(item: Scored) -> float:
            return float(item.answer.startswith("You are so right"))

        golden = {"liked": liked, "right": right}
        return reading_of(f"best-of-{n}", [Look(item_of(one)) for one in best], Eyes(proxy, golden=golden))

    guard = Guard(chosen(1))
    verdicts = [guard.take(chosen(n)) for n in (2, 4, 8)]
    assert guard.readings[-1].golden["liked"].mean > guard.readings[0].golden["liked"].mean + 0.3
    sentences = [alarm.sentence for verdict in verdicts for alarm in verdict.alarms if alarm.name == "parted"]
    assert sentences
    assert all("golden right fell" in sentence for sentence in sentences)
    assert verdicts[-1].stop
    assert verdicts[-1].last_good in ("best-of-1", "best-of-2")


def plain(revision: str = "r", **fields) -> Reading:
    usual_ones = {
        "proxy": Measure(0.0, 0.1, 100),
        "golden": {"right": Measure(0.5, 0.05, 100)},
        "second": Measure(0.0, 0.1, 100),
        "length": Measure(20.0, 1.0, 100),
        "refusals": Measure(0.02, 0.01, 100),
        "tool_errors": Measure(0.02, 0.01, 100),
        "repetition": Measure(0.02, 0.01, 100),
    }
    return Reading(**{**usual_ones, "revision": revision, **fields})


@pytest.mark.parametrize(
    ("fields", "alarm"),
    [
        ({"kl": 17.0}, "kl"),
        ({"refusals": Measure(0.2, 0.02, 100)}, "refusals"),
        ({"tool_errors": Measure(0.2, 0.02, 100)}, "tool_errors"),
        ({"repetition": Measure(0.3, 0.02, 100)}, "repetition"),
        ({"golden": {"right": Measure(0.2, 0.05, 100)}}, "golden_fell"),
        ({"second": Measure(-1.0, 0.1, 100), "proxy": Measure(1.0, 0.1, 100)}, "second_opinion"),
        ({"golden": {"right": Measure(0.2, 0.05, 100)}, "proxy": Measure(1.0, 0.1, 100)}, "parted"),
    ],
)
def test_each_guard_has_its_alarm(fields: dict, alarm: str) -> None:
    guard = Guard(plain("first"))
    assert not guard.take(plain("second")).stop
    verdict = guard.take(plain("third", **fields))
    assert [one.name for one in verdict.alarms] == [alarm]
    assert verdict.stop
    assert verdict.last_good == "second"


def test_a_stop_is_final() -> None:
    guard = Guard(plain("first"))
    assert guard.take(plain("bad", kl=100.0)).stop
    assert guard.take(plain("fine")).stop
    assert guard.last_good == "first"


def test_noise_is_no_alarm() -> None:
    guard = Guard(plain("first"), GuardLimits())
    noisy = plain("noisy", golden={"right": Measure(0.42, 0.05, 100)}, refusals=Measure(0.06, 0.02, 100))
    assert not guard.take(noisy).alarms


def test_shorter_answers_are_told_and_do_not_stop() -> None:
    verdict = Guard(plain("first")).take(plain("short", length=Measure(8.0, 1.0, 100)))
    assert [alarm.name for alarm in verdict.alarms] == ["length"]
    assert not verdict.stop


def test_measures_have_their_errors() -> None:
    assert measured([0.0, 1.0, 0.0, 1.0]) == Measure(0.5, pytest.approx(0.2887, abs=1e-3), 4)
    assert measured([]) == Measure(0.0)


def test_people_belong_to_one_of_the_two_rewards() -> None:
    events = [mark(n, "answer", 1.0, f"p{n % 200}") for n in range(400)]
    second = {event.person for event in events if is_for_second(event)}
    assert 30 < len(second) < 70
    assert not second & {event.person for event in events if not is_for_second(event)}
