"""The mix: one number of a learned reward and graders, as a TOML file says."""

import asyncio
from pathlib import Path

import pytest

from loreloop.learn.examples import Task
from loreloop.learn.loop.reward.features import Features
from loreloop.learn.loop.reward.linear import LinearReward, LinearSettings
from loreloop.learn.loop.reward.mix import messages_of, mix_of
from loreloop.learn.rewards.graders.grader import Means
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.protocol.errors import BadRequest
from tests.learn.loop.test_linear_reward import mark
from tests.learn.runs import said

GRADER = """
[part.grader]
type = "string_check"
name = "right"
operation = "like"
input = "{{ sample.output_text }}"
reference = "{{ item.sum }}"
"""
BOTH = f"""
length_penalty = 0.5
[[part]]
name = "people"
[[part]]
name = "right"
weight = 3.0
applies = "sum"
{GRADER}
"""


def taught() -> LinearReward:
    reward = LinearReward(LinearSettings(features=Features(bits=12)))
    reward.update([mark(n, "Gladly: 4" if n % 2 else "What? 4", float(n % 2), f"p{n}") for n in range(40)])
    return reward


def scored(tmp_path: Path, text: str, answer: str, **item) -> Score:
    file = tmp_path / "mix.toml"
    file.write_text(text)
    mixed = mix_of(file, taught(), Means())
    return asyncio.run(mixed(Answer(answer), Task(said("2 + 2?"), item)))


def test_a_mix_is_the_mean_by_weights_less_the_length(tmp_path: Path) -> None:
    both = scored(tmp_path, BOTH, "Gladly: 4", sum="4")
    assert both.parts["right"] == 1
    assert 0.5 < both.parts["people"] < 1
    assert both.value == pytest.approx((both.parts["people"] + 3) / 4 - 0.5 * 2 / 100)


def test_a_part_has_no_say_where_it_does_not_apply(tmp_path: Path) -> None:
    alone = scored(tmp_path, BOTH, "What? 4")
    assert alone.parts.keys() == {"people"}
    assert alone.value < 0.5
    nothing = scored(tmp_path, f'[[part]]\nname = "right"\napplies = "sum"\n{GRADER}', "4")
    assert nothing.trouble == "no part of the mix applies to this task"


def test_trouble_of_one_part_is_that_of_the_mix(tmp_path: Path) -> None:
    found = scored(tmp_path, BOTH.replace("item.sum", "item.other"), "4", sum="4")
    assert found.value == 0
    assert found.trouble is not None
    assert found.trouble.startswith("right: invalid_variable")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "part"),
        ("[[part]]\n", "name"),
        ('[[part]]\nname = "a"\nweigth = 1', "weigth"),
        ('[[part]]\nname = "a"\nweight = 0', "weight"),
        ('[[part]]\nname = "a"\n[[part]]\nname = "a"', "two parts named 'a'"),
        ('[[part]]\nname = "a"\ngrader = { type = "none" }', r"part\[0\]\.grader\.type"),
        ("[[part", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_its_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        scored(tmp_path, text, "4")


def test_a_learned_part_needs_a_learned_reward(tmp_path: Path) -> None:
    file = tmp_path / "mix.toml"
    file.write_text('[[part]]\nname = "people"')
    with pytest.raises(BadRequest, match="is the learned reward, and this loop learns none"):
        mix_of(file, None, Means())
    with pytest.raises(BadRequest, match=r"missing\.toml cannot be read"):
        mix_of(tmp_path / "missing.toml", None, Means())


def test_a_tasks_messages_are_those_that_it_came_with() -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    assert messages_of(Task(said("other"), {"messages": messages})) == tuple(messages)
    assert messages_of(Task(said("2 + 2?"))) == tuple(messages)
