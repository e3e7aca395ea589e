"""The simulated loop: nothing is lost, no token is too old, and where a formula says how long a step takes, it does."""

import random
from dataclasses import replace

import pytest

from loreloop.plan.drawing import Answer, Sampler
from loreloop.plan.simulation import Course, Engines, Outcome, played

SAME = Engines(
    n_samplers=2,
    room=1000,
    token_seconds=lambda n: 0.01 + 0.001 * n,
    read_seconds=0.0005,
    train_seconds=lambda n_rows: n_rows / 1000,
    handover_seconds=0.25,
)
COURSE = Course(batch=4, group=4, prompt=100, n_steps=6)


def lengths_of(seed: int, n: int = 997) -> list[int]:
    rng = random.Random(seed)
    return [max(1, round(rng.lognormvariate(3.5, 0.9))) for _ in range(n)]


def courses() -> list[Course]:
    return [
        replace(COURSE, n_steps=12, warm_up=2, staleness=staleness, overtaking=overtaking, piece=piece)
        for staleness in (0, 1, 3)
        for overtaking in (False, True)
        for piece in (None, 10)
    ]


def name_of(course: Course) -> str:
    return f"{course.staleness}{'-overtaking' if course.overtaking else ''}{'-pieces' if course.piece else ''}"


@pytest.mark.parametrize("n_samplers", [0, 1, 3, 40])
@pytest.mark.parametrize("course", courses(), ids=name_of)
def test_nothing_is_lost_nothing_is_too_old_and_nobody_does_more_than_all_the_time(
    course: Course, n_samplers: int
) -> None:
    for seed in range(3):
        engines = replace(SAME, n_samplers=n_samplers, room=3 + 5 * seed)
        found = played(engines, course, lengths_of(seed))
        assert found.n_begun == found.n_learned + found.n_left
        assert found.n_learned == course.n_steps * course.n_answers
        assert 0 <= found.staleness_mean <= found.staleness_most <= course.staleness
        assert -1e-9 <= found.trainer_idle < 1
        assert -1e-9 <= found.sampler_idle < 1
        assert found.n_steps == 10


def test_the_tokens_of_a_step_are_those_of_its_own_answers() -> None:
    lengths = lengths_of(5)
    found = played(SAME, replace(COURSE, warm_up=1, staleness=2), lengths)
    assert found.n_tokens == sum(lengths[place] for place in range(16, 16 * 6))


def test_by_turns_a_step_takes_the_sum_of_its_parts() -> None:
    """8 answers to 2 prompts at each of two samplers, all of 50 tokens."""
    found = played(SAME, COURSE, [50])
    rollout = 2 * 100 * 0.0005 + 50 * (0.01 + 0.008)
    train = (4 * 100 + 16 * 50) / 1000
    # The last revision is handed over behind the last step.
    assert found.seconds == pytest.approx(6 * (rollout + train) + 5 * 0.25)
    assert found.trainer_idle == pytest.approx(1 - 6 * train / found.seconds)
    assert found.sampler_idle == pytest.approx(1 - 6 * rollout / found.seconds)
    assert found.staleness_most == 0


def test_where_there_is_less_room_answers_come_in_waves() -> None:
    found = played(replace(SAME, room=2, read_seconds=0.0), COURSE, [50])
    # Four waves of two answers at each sampler.
    rollout, train = 4 * 50 * (0.01 + 0.002), 1.2
    assert found.seconds == pytest.approx(6 * (rollout + train) + 5 * 0.25)


def test_without_samplers_one_engine_does_both_by_turns() -> None:
    found = played(replace(SAME, n_samplers=0, handover_seconds=0.0), COURSE, [50])
    rollout = 4 * 100 * 0.0005 + 50 * (0.01 + 0.016)
    assert found.seconds == pytest.approx(6 * (rollout + 1.2))
    assert found.trainer_idle + found.sampler_idle == pytest.approx(1)


def test_an_engine_that_does_both_never_does_them_at_once() -> None:
    for staleness in (1, 2):
        found = played(
            replace(SAME, n_samplers=0, room=5), replace(COURSE, n_steps=9, staleness=staleness), lengths_of(1)
        )
        assert found.trainer_idle + found.sampler_idle >= 1 - 1e-9


def test_of_answers_that_end_one_after_the_other_the_rest_goes_faster() -> None:
    """Two answers at one sampler: 10 tokens together, then 20 more alone."""
    engines = replace(SAME, n_samplers=1, read_seconds=0.0, handover_seconds=0.0)
    found = played(engines, Course(batch=1, group=2, prompt=1, n_steps=1), [10, 30])
    assert found.seconds == pytest.approx(10 * 0.012 + 20 * 0.011 + 41 / 1000)


def test_beside_a_slow_trainer_drawing_costs_nothing() -> None:
    slow = replace(SAME, train_seconds=lambda n_rows: 100.0, handover_seconds=0.0)
    found = played(slow, replace(COURSE, n_steps=8, warm_up=2, staleness=1), [50])
    assert found.step_seconds == pytest.approx(100)
    assert found.trainer_idle == pytest.approx(0)
    assert found.staleness_mean == 1


def test_beside_a_quick_trainer_samplers_are_hardly_idle() -> None:
    """Answers of two steps are there at once, so that a sampler waits for neither."""
    quick = replace(SAME, n_samplers=1, train_seconds=lambda n_rows: 0.001, handover_seconds=0.0, read_seconds=0.0)
    found = played(quick, replace(COURSE, n_steps=30, warm_up=4, staleness=1), [50])
    assert found.sampler_idle == pytest.approx(0, abs=0.01)
    # Drawing 32 answers at once is the quickest way to 16 of them, and 16 at once the slowest.
    assert 50 * 0.042 / 2 <= found.step_seconds <= 50 * 0.026


def bounded(outcome: Outcome, engines: Engines, course: Course, mean: float) -> None:
    """Neither the trainer nor the samplers give more than they can."""
    n_rows = course.batch * course.prompt + course.n_answers * mean
    assert outcome.step_seconds >= engines.train_seconds(round(n_rows)) * 0.7
    most = engines.n_samplers * max(n / engines.token_seconds(n) for n in range(1, engines.room + 1))
    assert outcome.tokens_a_second <= most * 1.3  # what lay ready behind the warm-up comes on top


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_throughput_is_bounded_by_the_trainer_and_by_the_samplers(staleness: int) -> None:
    lengths = lengths_of(9)
    engines = replace(SAME, room=6)
    course = replace(COURSE, n_steps=30, warm_up=8, staleness=staleness)
    bounded(played(engines, course, lengths), engines, course, sum(lengths) / len(lengths))


def test_staleness_and_overtaking_help_where_lengths_differ() -> None:
    engines, lengths = replace(SAME, handover_seconds=0.0), lengths_of(2)
    course = replace(COURSE, n_steps=60, warm_up=20)
    by_turns, beside, older = (played(engines, replace(course, staleness=each), lengths) for each in (0, 2, 4))
    assert beside.tokens_a_second > 1.2 * by_turns.tokens_a_second
    # With as many answers under way, a step waits for fewer of them, also when the first steps are long over.
    overtaking = played(engines, replace(course, staleness=4, overtaking=True), lengths)
    assert overtaking.trainer_idle < beside.trainer_idle - 0.02
    assert overtaking.tokens_a_second > 1.05 * beside.tokens_a_second
    # Beside steps that wait for their own and may be as late, its tokens are much younger.
    assert older.staleness_mean == 4
    assert overtaking.staleness_mean < 2.5
    assert overtaking.tokens_a_second > 0.9 * older.tokens_a_second


def test_revisions_go_through_the_same_links_one_after_another() -> None:
    """A revision takes 10 s to the samplers, and everything else next to nothing: a step needs one of them."""
    slow = Engines(2, 1000, lambda n: 1e-4, 1e-6, lambda n_rows: 0.01, handover_seconds=10.0)
    for staleness, steps_a_revision in ((0, 1), (1, 1), (3, 2), (5, 3)):
        found = played(slow, replace(COURSE, n_steps=40, warm_up=10, staleness=staleness), [50])
        # When one arrives, what may be learned with it is learned at once, and comes with the next but one.
        assert found.step_seconds == pytest.approx(10 / steps_a_revision, rel=0.1)
        assert found.staleness_most <= staleness


def test_an_answer_that_waits_for_room_is_drawn_by_the_newest_weights() -> None:
    """Room for one answer at a time: of those that may be three steps old, most begin when they are young."""
    narrow = replace(SAME, n_samplers=1, room=1, handover_seconds=0.0)
    found = played(narrow, replace(COURSE, n_steps=30, warm_up=10, staleness=3), [50])
    assert found.staleness_mean < 1
    assert found.staleness_most <= 1


def test_pieces_make_tokens_younger_and_the_oldest_no_older() -> None:
    course, lengths = replace(COURSE, n_steps=20, warm_up=5, staleness=3), [5, 5, 5, 400]
    engines = replace(SAME, read_seconds=0.0, train_seconds=lambda n_rows: 0.5)
    whole, pieces = (played(engines, replace(course, piece=piece, overtaking=True), lengths) for piece in (None, 8))
    assert pieces.staleness_mean < whole.staleness_mean
    assert pieces.staleness_most <= 3


def test_a_piece_under_new_weights_is_read_again() -> None:
    """Of prompts of 100 tokens, one answer in pieces of 10: what was drawn is read as the prompt is."""
    seconds = {}
    for revision in (0, 1):
        sampler = Sampler(8, 100, lambda n: 0.01, 0.001)
        answer = Answer(prompt=0, left=20)
        sampler.take(answer, 10)
        assert sampler.next_end() == pytest.approx(0.1 + 0.1)
        sampler.advance(0.2)
        assert sampler.ended() == [answer]
        sampler.revision = revision
        sampler.take(answer, 10)
        seconds[revision] = sampler.next_end()
    assert seconds == pytest.approx({0: 0.2 + 0.1, 1: 0.2 + 0.11 + 0.1})


def test_a_prompt_is_read_once_for_its_group_and_again_after_it_was_forgotten() -> None:
    sampler = Sampler(8, 100, lambda n: 0.01, 0.001)
    for _ in range(3):
        sampler.take(Answer(prompt=5, left=10), 10)
    assert sampler.next_end() == pytest.approx(0.1 + 0.1)
    sampler.advance(0.2)
    assert len(sampler.ended()) == 3
    sampler.forget(5)
    sampler.take(Answer(prompt=5, left=10), 10)
    assert sampler.next_end() == pytest.approx(0.2 + 0.1 + 0.1)


def test_the_same_play_comes_out_the_same() -> None:
    course = replace(COURSE, staleness=2, overtaking=True, piece=7)
    assert played(SAME, course, lengths_of(4)) == played(SAME, course, lengths_of(4))
