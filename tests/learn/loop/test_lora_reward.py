"""The LoRA reward against a real server of a tiny model: slopes, learning, going on, and forgetting."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker

from loreloop.cli.server import RunningServer
from loreloop.learn.loop.reward.events import DataRange, LabelledEvent, RewardVersion, Scored
from loreloop.learn.loop.reward.keeping import drop_files, save_version
from loreloop.learn.loop.reward.lora import LoraReward, LoraSettings, outcome_of, slopes_of
from loreloop.learn.rendering import renderer_of
from loreloop.protocol.errors import Unavailable
from tests.learn.loop.test_linear_reward import fields_of, mark
from tests.learn.runs import service

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK leaves its own background tasks to the garbage collector


def pair(number: int, better: str, worse: str, person: str = "ada") -> LabelledEvent:
    event = mark(number, better, 1.0, person)
    return LabelledEvent(**{**fields_of(event), "worse": Scored(event.item.messages, worse)})


def pairs(n: int, first: int = 0) -> list[LabelledEvent]:
    return [pair(first + k, f"Yes it is {k}.", f"never {k} no", f"p{k % 20}") for k in range(n)]


@pytest.mark.parametrize("event", [pair(1, "a", "b"), mark(1, "a", 0.3)], ids=["pair", "mark"])
def test_slopes_are_those_of_the_loss(event: LabelledEvent) -> None:
    def loss(rewards: np.ndarray) -> float:
        if event.worse is None:
            z = rewards[0] + 0.2
            return float(np.logaddexp(0, -z) * event.value + np.logaddexp(0, z) * (1 - event.value))
        return float(np.logaddexp(0, rewards[1] - rewards[0]) + 0.05 * rewards.sum() ** 2)

    rewards = np.array([0.7, -0.4])[: 1 + (event.worse is not None)]
    found = slopes_of(event, rewards, 0.2, 0.05)
    for place in range(len(rewards)):
        step = np.eye(len(rewards))[place] * 1e-5
        assert found[place] == pytest.approx((loss(rewards + step) - loss(rewards - step)) / 2e-5, abs=1e-7)
    assert outcome_of(event, rewards, 0.2).said == event.value


@pytest.fixture(scope="module")
def asked(server: RunningServer) -> Iterator[tinker.ServiceClient]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with service(server) as client:
            yield client


def reward_of(asked: tinker.ServiceClient, folder: Path, **settings) -> LoraReward:
    usual = {"rank": 4, "learning_rate": 5e-3, "n_reference": 8, "batch": 4}
    return LoraReward(asked, "tiny", renderer_of(folder), LoraSettings(**{**usual, **settings}))


def test_preferences_are_learned_and_a_version_goes_on(
    asked: tinker.ServiceClient, tiny_folder: Path, tmp_path: Path
) -> None:
    reward = reward_of(asked, tiny_folder)
    held_out = pairs(4, first=500)
    assert reward.version.number == 0
    first = reward.update(pairs(16))
    reward.update(pairs(16, first=16))
    better = reward.score([event.item for event in held_out])
    worse = reward.score([event.worse for event in held_out if event.worse])
    assert np.mean(better) > np.mean(worse) + 1
    assert first.weights != reward.version.weights
    assert reward.version.data.n_events == 32
    scores = np.array(reward.score(reward.anchors()))
    assert abs(scores.mean()) < 1e-6
    assert abs(scores.std() - 1) < 1e-6

    reward.save(tmp_path)
    again = reward_of(asked, tiny_folder)
    again.load(tmp_path)
    assert again.version == reward.version
    assert again.score([held_out[0].item]) == pytest.approx(better[:1], abs=1e-4)
    assert again.ledger.spent == reward.ledger.spent

    old = again.version.weights
    again.forget(persons=["p0"])
    assert "p0" not in again.persons
    assert not [one for one in again.learned if one.person == "p0"]
    again.save(tmp_path)
    again.drop_older(tmp_path)
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b'"p1"' in kept
    assert b'"p0"' not in kept, "not among the reference answers, in the ledger, or in an older version"
    with pytest.raises(tinker.TinkerError):
        asked.create_training_client_from_state(old).result()
    assert again.score([held_out[0].item])


def test_marks_are_learned(asked: tinker.ServiceClient, tiny_folder: Path) -> None:
    reward = reward_of(asked, tiny_folder)
    marks = [mark(n, "Yes it is." if n % 2 else "never no", float(n % 2), f"p{n}") for n in range(24)]
    reward.update(marks)
    good, bad = reward.score([marks[1].item, marks[0].item])
    assert good > bad


def test_what_is_over_a_persons_cap_moves_nothing(asked: tinker.ServiceClient, tiny_folder: Path) -> None:
    reward = reward_of(asked, tiny_folder, person_cap=3)
    reward.update([pair(n, f"yes {n}", f"no {n}") for n in range(20)])
    assert len(reward.learned) == 3
    assert reward.version.data.n_events == 20


def test_a_reward_whose_weights_are_gone_learns_anew_what_it_still_knows(
    asked: tinker.ServiceClient, tiny_folder: Path, tmp_path: Path
) -> None:
    reward = reward_of(asked, tiny_folder)
    reward.update(pairs(16))
    reward.save(tmp_path)
    before = reward.version
    asked.create_rest_client().delete_checkpoint_from_tinker_path(before.weights).result()
    again = reward_of(asked, tiny_folder)
    again.load(tmp_path)
    assert again.version == before, "whom it must forget may be told first"
    (event,) = pairs(1, first=500)
    better, worse = again.score([event.item, event.worse])
    assert better > worse
    assert (again.version.number, again.version.note) == (2, "learned anew: its weights are gone at the server")
    assert again.known() == reward.known()
    assert (again.ledger.spent, again.persons) == (reward.ledger.spent, reward.persons)
    again.save(tmp_path)
    third = reward_of(asked, tiny_folder)
    third.load(tmp_path)
    assert third.version == again.version
    assert not third.is_lost


def test_nothing_is_learned_anew_of_whoever_was_deleted_meanwhile(
    asked: tinker.ServiceClient, tiny_folder: Path, tmp_path: Path
) -> None:
    reward = reward_of(asked, tiny_folder)
    reward.update(pairs(8))
    reward.save(tmp_path)
    asked.create_rest_client().delete_checkpoint_from_tinker_path(reward.version.weights).result()
    again = reward_of(asked, tiny_folder)
    again.load(tmp_path)
    again.forget(reward.persons)
    assert (again.n_steps, again.known(), again.is_lost) == (0, set(), False)


def test_weights_at_the_server_go_before_the_files_that_name_them(tmp_path: Path) -> None:
    for number in range(1, 5):
        version = RewardVersion(number=number, kind="lora", data=DataRange(), weights=f"tinker://r/weights/{number}")
        save_version(tmp_path, version, {"state.json": b"{}"})
    assert not (tmp_path / "000001" / "state.json").exists()
    asked: list[str | None] = []

    def away(version: RewardVersion) -> None:
        asked.append(version.weights)
        raise Unavailable("the server is away")

    for _ in range(2):
        with pytest.raises(Unavailable):
            drop_files(tmp_path, kept=1, first=away)
    assert asked == ["tinker://r/weights/2"] * 2, "what could not be deleted is deleted the next time"
    asked.clear()
    drop_files(tmp_path, kept=1, first=lambda version: asked.append(version.weights))
    assert asked == ["tinker://r/weights/2", "tinker://r/weights/3"]
    assert [place.parent.name for place in tmp_path.glob("*/state.json")] == ["000004"]
