"""`python -m bench.reward_model`: how a streaming reward learns from a population with hidden tastes, by five seeds.

Writes bench/results/reward-model.json. 500 preferences are learned, 15 % of them said the wrong way round. Held-out
prompts and answers are judged by AUC against what people really prefer, and by calibration against labels with the
same noise. Then the tastes of all 40 persons flip. A first-order step (diagonal AdaGrad, with and without replay) is
measured beside the second-order one. All figures are means over seeds; other seeds (10 to 14) were used to choose
settings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.record import RESULTS, line, write_record
from bench.reward_population import Judged, Population, Written
from bench.rig import Figure
from loreloop.learn.loop.reward.calibration import auc, calibration_error
from loreloop.learn.loop.reward.events import LabelledEvent, Scored
from loreloop.learn.loop.reward.features import Features, Floats, Row
from loreloop.learn.loop.reward.head import sigmoid
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings

SEEDS = range(1, 6)
N_LEARNED = 500
AFTER = (50, 100, 150, 200)  # events since the flip
EVERY_SECONDS = 600.0  # between two events


def main() -> None:
    found = [one_seed(seed) for seed in SEEDS]
    figures = [
        Figure("pair AUC, clean labels", mean(found, "auc"), "", at_least=0.85),
        Figure("calibration error, labels with the noise", mean(found, "error"), "", at_most=0.08),
        Figure("longest update of 25 events", max(one.slowest for one in found), "s", at_most=5.0),
        Figure("an event", mean(found, "event_ms"), "ms"),
        Figure("AUC right after the flip", mean(found, "flipped"), ""),
        *(
            Figure(f"AUC {after} events after the flip", float(np.mean([one.after[n] for one in found])), "")
            for n, after in enumerate(AFTER)
        ),
        Figure("share of the AUC above a coin's regained after 200", regained(found), "", at_least=0.9),
        Figure("events until the flip was noticed", mean(found, "noticed"), "events"),
        Figure("AUC with AdaGrad, no replay", mean(found, "adagrad"), ""),
        Figure("AUC with AdaGrad, two replayed for each", mean(found, "adagrad_replay"), ""),
        Figure("AUC of length alone", mean(found, "length"), ""),
    ]
    write_record(RESULTS, "reward-model", __doc__ or "", figures, seeds=[*SEEDS])
    for figure in figures:
        print(line("reward-model", figure), flush=True)


@dataclass(frozen=True)
class Found:
    """What one seed has shown."""

    auc: float
    error: float
    slowest: float
    event_ms: float
    flipped: float
    after: tuple[float, ...]
    noticed: float
    adagrad: float
    adagrad_replay: float
    length: float


def one_seed(seed: int, n_held_out: int = 1000) -> Found:
    """A reward's life: 500 events, an exam, the flip, and 200 events with exams between them."""
    population = Population(seed)
    learned, exam = population.judged(N_LEARNED), population.judged(n_held_out, held_out=True)
    reward = LinearReward(LinearSettings(seed=seed))
    seconds = taught(reward, events_of(learned))
    rows = rows_of(reward, exam)
    scores = differences(reward, rows)
    chances = reward.link.of(scores)
    said = np.array([float(one.said) for one in exam])
    first_rows = [one.row for one in reward.learned]
    population.flip()
    new, new_exam = population.judged(max(AFTER)), population.judged(n_held_out, held_out=True)
    new_rows = rows_of(reward, new_exam)
    flipped, after, noticed = clean_auc(differences(reward, new_rows), new_exam), list[float](), float(max(AFTER))
    for n, event in enumerate(events_of(new, first=N_LEARNED), 1):
        if "change" in reward.update([event]).note:
            noticed = min(noticed, n)
        if n in AFTER:
            after.append(clean_auc(differences(reward, new_rows), new_exam))
    return Found(
        auc=clean_auc(scores, exam),
        error=calibration_error(chances, said),
        slowest=max(seconds),
        event_ms=1000 * sum(seconds) / N_LEARNED,
        flipped=flipped,
        after=tuple(after),
        noticed=noticed,
        adagrad=clean_auc(adagrad(first_rows, rows, replay=0), exam),
        adagrad_replay=clean_auc(adagrad(first_rows, rows, replay=2), exam),
        length=clean_auc(np.array([len(one.second.text) - len(one.first.text) for one in exam], float), exam),
    )


def item_of(written: Written) -> Scored:
    return Scored(({"role": "user", "content": written.prompt.text},), written.text)


def events_of(judged: Sequence[Judged], first: int = 0) -> list[LabelledEvent]:
    """As labels come out of feedback: the better one first, as the person has said it."""
    found = []
    for number, one in enumerate(judged, first):
        better, worse = (one.first, one.second) if one.said else (one.second, one.first)
        found.append(
            LabelledEvent(
                id=f"event{number}",
                number=number,
                person=one.person,
                created=number * EVERY_SECONDS,
                metric="preference",
                item=item_of(better),
                worse=item_of(worse),
            )
        )
    return found


def taught(reward: LinearReward, events: Sequence[LabelledEvent], batch: int = 25) -> list[float]:
    """Updates of `batch` events, and the seconds that each took."""
    seconds = []
    for start in range(0, len(events), batch):
        started = time.perf_counter()
        reward.update(events[start : start + batch])
        seconds.append(time.perf_counter() - started)
    return seconds


def rows_of(reward: LinearReward, exam: Sequence[Judged]) -> list[Row]:
    """The exam's pairs as numbers, which are made once for all looks at them."""
    return [reward.row(item_of(one.first)).minus(reward.row(item_of(one.second))) for one in exam]


def differences(reward: LinearReward, rows: Sequence[Row]) -> Floats:
    """The raw reward of the first answer over the second."""
    return np.array([reward.head.raw(row) for row in rows])


def clean_auc(scores: Floats, exam: Sequence[Judged]) -> float:
    return auc(scores, np.array([one.clean for one in exam]))


def mean(found: Sequence[Found], name: str) -> float:
    return float(np.mean([getattr(one, name) for one in found]))


def regained(found: Sequence[Found]) -> float:
    """(AUC after 200 events − ½) / (AUC before the flip − ½), of the means."""
    return float((np.mean([one.after[-1] for one in found]) - 0.5) / (mean(found, "auc") - 0.5))


def adagrad(learned: Sequence[Row], exam: Sequence[Row], replay: int) -> Floats:
    """What the first-order rival says of the exam: the same numbers and loss, with diagonal AdaGrad's steps."""
    theta, squares = np.zeros(len(learned[0].form)), np.full(len(learned[0].form), 0.1)
    words, word_squares = np.zeros(1 << Features().bits), np.full(1 << Features().bits, 0.01)
    rng = np.random.default_rng(0)

    def raw(row: Row) -> float:
        return float(theta @ row.form + words[row.places] @ row.values)

    for n, row in enumerate(learned):
        for each in [row, *(learned[rng.integers(n + 1)] for _ in range(replay))]:
            slope = 1 - sigmoid(raw(each))
            squares += (slope * each.form) ** 2
            theta += 0.05 * slope * each.form / np.sqrt(squares)
            word_squares[each.places] += (slope * each.values) ** 2
            words[each.places] += 0.01 * slope * each.values / np.sqrt(word_squares[each.places])
    return np.array([raw(row) for row in exam])


if __name__ == "__main__":
    main()
