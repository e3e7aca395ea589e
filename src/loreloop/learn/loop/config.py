"""loop.toml: what a loop is told, in one frozen tree. A wrong or unknown field is refused by its name.

Knows no server and no folder of a loop; only which values can mean something.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from loreloop.learn.rewards.graders.reading import grader_of
from loreloop.protocol.errors import BadRequest, WrongSettings

LARGE = 1 << 31
Share = Annotated[float, Meta(ge=0, le=1)]
Level = Annotated[float, Meta(gt=0, lt=0.5)]  # the chance of a wrong decision that is accepted
MethodName = Literal["sft", "dpo", "kto", "hindsight", "grpo"]
FOR_GRPO = ("group_size", "answer_tokens", "temperature", "staleness", "kl")  # of `training`
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of loop.toml."""


class Triggers(Table, frozen=True):
    """When a cycle begins: after so many new statements, at a time of the day (of `zone`, or of this machine), or by
    `loreloop loop run --now` alone."""

    feedback: Annotated[int, Meta(ge=0, lt=LARGE)] = 20  # 0: the count alone begins nothing
    nightly: Annotated[str, Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d\Z")] | None = None
    zone: str | None = None
    poll_seconds: Annotated[float, Meta(gt=0, le=3600)] = 10.0


class Training(Table, frozen=True):
    """How a candidate learns from the champion's weights on. Each method runs where there is something for it, in the
    order in which they are named. None is the rule of `--lr`, `--epochs` and `--batch-size` for files, but for `sft`,
    whose corrections are to come back word for word."""

    methods: tuple[MethodName, ...] = ("sft", "kto")
    rank: Annotated[int, Meta(ge=1, le=1024)] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    epochs: Annotated[int, Meta(ge=1, le=1000)] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=4096)] | None = None
    least_examples: Annotated[int, Meta(ge=1, lt=LARGE)] = 4  # a method with fewer is left out
    most_examples: Annotated[int, Meta(ge=1, lt=LARGE)] = 2000  # of the newest, for each method
    most_per_person: Annotated[int, Meta(ge=1, lt=LARGE)] = 200
    liked: Annotated[float, Meta(ge=0, le=100)] = 0.0  # liked answers beside each correction, to imitate as well
    general: Annotated[int, Meta(ge=0, le=10_000)] = 48  # prompts whose answers by the champion are learned beside
    general_file: str | None = None  # of such prompts, in the place of those that come with the program
    group_size: Annotated[int, Meta(ge=2, le=1024)] = 8
    answer_tokens: Annotated[int, Meta(ge=1, lt=LARGE)] = 128
    temperature: Annotated[float, Meta(gt=0, le=10)] = 1.0
    staleness: Annotated[int, Meta(ge=0, le=64)] = 0
    kl: Annotated[float, Meta(ge=0, le=100)] = 0.01  # the pull to the promoted revision, where rewards teach
    kl_budget: Annotated[float, Meta(gt=0)] | None = 0.1  # nats a token that the pull is steered to


class RewardTable(Table, frozen=True):
    """What GRPO learns from: a learned reward, a grader, or both as `mix` says. `golden` is never trained on. `metrics`
    are how much statements by each count, in the place of what they count usually; 0: not at all."""

    kind: Literal["none", "linear", "lora"] = "none"
    grader: dict[str, Any] | None = None
    mix: str | None = None
    golden: str | None = None
    metrics: dict[str, Annotated[float, Meta(ge=0, le=100)]] = {}


class Suite(Table, frozen=True):
    """Tasks with a grader: a `task` suite is what the loop is for, a `base` suite what must not be lost on the way."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    file: str
    grader: dict[str, Any]
    role: Literal["task", "base"] = "base"
    lose_most: Share = 0.02
    answer_tokens: Annotated[int, Meta(ge=1, lt=LARGE)] = 64


class Gate(Table, frozen=True):
    """What a candidate must hold before anybody sees it."""

    suites: tuple[Suite, ...] = ()
    golden_win_least: Share = 0.5  # of the golden prompts that either wins
    false_alarm: Level = 0.02  # of the paired test that stops a candidate early
    kl_most: Annotated[float, Meta(gt=0)] = 1.5  # nats a token to the champion, on recorded answers
    length_most: Annotated[float, Meta(gt=0)] = 3.0  # times the champion's mean answer
    length_least: Annotated[float, Meta(ge=0)] = 0.05
    refusals_most: Share = 0.1  # by how much the share of refusals may grow
    repetition_most: Share = 0.1
    prompts: Annotated[int, Meta(ge=0, le=10_000)] = 32  # recorded ones that the candidate answers in the shadow


class Canary(Table, frozen=True):
    """How a candidate meets users, and what is enough to promote it or to roll it back."""

    percent: Annotated[float, Meta(gt=0, lt=100)] = 10.0  # until `least_episodes` of it have shown no harm
    then_percent: Annotated[float, Meta(gt=0, lt=100)] = 50.0
    metrics: tuple[str, ...] = ("thumb", "score", "accepted", "demonstration")
    promote_on: Literal["gain", "no_harm"] = "gain"
    gain: Annotated[float, Meta(gt=0, lt=1)] = 0.05  # the difference that is worth finding
    harm: Annotated[float, Meta(ge=0, lt=1)] = 0.02  # a loss below this is borne
    margin: Annotated[float, Meta(gt=0, lt=1)] = 0.05  # the loss that "no_harm" has to rule out
    false_promotion: Level = 0.02
    false_alarm: Level = 0.02
    least_episodes: Annotated[int, Meta(ge=1, lt=LARGE)] = 20  # of either arm, before anything but harm is decided
    most_episodes: Annotated[int, Meta(ge=2, lt=LARGE)] = 3000  # of both arms together
    most_days: Annotated[float, Meta(gt=0, le=365)] = 14.0
    most_per_person: Annotated[int, Meta(ge=1, lt=LARGE)] = 50  # episodes of one person that count


class Persons(Table, frozen=True):
    """Adapters of single persons, or of `teams` by the names of their users, who then get their own champion. 0
    corrections: nobody has one."""

    corrections: Annotated[int, Meta(ge=0, lt=LARGE)] = 0  # new ones of a person, after which theirs is trained
    users: tuple[str, ...] = ()  # who may have one, by the `user` of their requests; empty: everybody
    teams: dict[str, tuple[str, ...]] = {}  # users who share one, which learns the corrections of all of them
    most: Annotated[int, Meta(ge=1, le=100_000)] = 100
    epochs: Annotated[int, Meta(ge=1, le=1000)] = 20
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    right_least: Share = 0.5  # of their corrections that the adapter must answer as corrected


class LoopConfig(Table, frozen=True):
    """One loop over one deployment. Paths of files are meant from the folder of loop.toml."""

    deployment: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
    url: Annotated[str, Meta(pattern=r"^https?://[^\s/]+\Z")] = "http://127.0.0.1:8000"
    key_variable: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")] = "LORELOOP_API_KEY"
    folder: str | None = None  # of the loop's own state; by default loop.toml's name with `.state` in place of `.toml`
    start: Annotated[str, Meta(pattern=r"^tinker://[^/]+/weights/[^/]+\Z")] | None = None
    seed: Annotated[int, Meta(ge=0, lt=LARGE)] = 0
    triggers: Triggers = Triggers()
    training: Training = Training()
    reward: RewardTable = RewardTable()
    gate: Gate = Gate()
    canary: Canary = Canary()
    persons: Persons = Persons()


class Loaded(msgspec.Struct, frozen=True):
    """A file's settings, with the folder that its paths are meant from and the folder of the loop's state."""

    config: LoopConfig
    base: Path
    folder: Path

    def path(self, name: str) -> Path:
        """A file that the settings name."""
        return self.base / Path(name).expanduser()


def load(file: Path) -> Loaded:
    """Reads loop.toml. WrongSettings names the field that cannot be used, and what can."""
    try:
        plain = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSettings(f"{file} cannot be read: {error.strerror}; `loreloop loop init` writes one.") from None
    except ValueError as error:
        raise WrongSettings(f"{file} is not TOML: {error}.") from None
    config = config_of(plain, str(file))
    loaded = Loaded(config, file.resolve().parent, Path())
    folder = loaded.path(config.folder) if config.folder else file.resolve().with_suffix(".state")
    loaded = Loaded(config, loaded.base, folder)
    named = {f"gate.suites[{n}].file": suite.file for n, suite in enumerate(config.gate.suites)}
    named |= {"training.general_file": config.training.general_file or ""}
    named |= {"reward.golden": config.reward.golden or "", "reward.mix": config.reward.mix or ""}
    for field, name in named.items():
        if name and not loaded.path(name).is_file():
            raise WrongSettings(f"{file}: `{field}` names {name}, and there is no such file; mend the path.")
    return loaded


def config_of(plain: object, where: str = "loop.toml") -> LoopConfig:
    """Settings of plain values. WrongSettings as for `load`."""
    try:
        config = msgspec.convert(plain, LoopConfig)
    except msgspec.ValidationError as error:
        raise WrongSettings(f"{where}: {_in_words(str(error))}.") from None
    for field, wrong in [*_contradictions(config), *_without_use(plain, config)]:
        raise WrongSettings(f"{where}: `{field}` {wrong}.")
    graders = {f"gate.suites[{n}].grader": suite.grader for n, suite in enumerate(config.gate.suites)}
    if config.reward.grader is not None:
        graders["reward.grader"] = config.reward.grader
    for field, grader in graders.items():
        try:
            grader_of(grader, field)
        except BadRequest as error:
            raise WrongSettings(f"{where}: {error.message}") from None
    return config


def _contradictions(config: LoopConfig) -> list[tuple[str, str]]:
    """Fields that are fine by themselves and not beside the others, each with what is wrong."""
    canary, reward, training = config.canary, config.reward, config.training
    names = [suite.name for suite in config.gate.suites]
    found = {
        "triggers.zone": "names no time zone that this machine knows; write one such as Europe/Berlin, or leave it out"
        if not _is_zone(config.triggers.zone)
        else "",
        "canary.then_percent": "is below `canary.percent`; a share only grows"
        if canary.then_percent < canary.percent
        else "",
        "canary.most_episodes": "is below twice `canary.least_episodes`, so that nothing could be promoted"
        if canary.most_episodes < 2 * canary.least_episodes
        else "",
        "canary.metrics": "is empty; name what users give" if not canary.metrics else "",
        "training.methods": "names no method; name sft, dpo, kto, hindsight or grpo" if not training.methods else "",
        "reward.kind": 'is "none" and there is no `reward.grader`, so that GRPO has nothing to learn from'
        if "grpo" in training.methods and (reward.kind, reward.grader, reward.mix) == ("none", None, None)
        else "",
        "reward.grader": "stands beside `reward.mix`, which names all graders itself; put it into that file"
        if reward.grader is not None and reward.mix is not None
        else "",
        "gate.suites": "has two suites of one name; call them differently" if len(names) > len({*names}) else "",
        "persons.teams": "has a user in two teams; each has one adapter"
        if len(members := [user for team in config.persons.teams.values() for user in team]) > len({*members})
        else "",
        "gate.length_least": "is not below `gate.length_most`"
        if config.gate.length_least >= config.gate.length_most
        else "",
    }
    return [(field, wrong) for field, wrong in found.items() if wrong]


def _without_use(plain: object, config: LoopConfig) -> list[tuple[str, str]]:
    """Fields that somebody has set, and that would say nothing beside the others."""
    training, reward = config.training, config.reward
    no_grpo = "" if "grpo" in training.methods else 'is for "grpo", which `training.methods` does not name'
    no_pull = no_grpo or ("" if training.kl else "steers `training.kl`, which is 0; set that above 0")
    no_sft = "" if "sft" in training.methods else 'is for "sft", which `training.methods` does not name'
    no_general = "" if config.persons.corrections else no_sft  # weights of a person's own are held by them too
    no_persons = (
        "" if config.persons.corrections else "needs `persons.corrections` above 0, without which nobody has one"
    )
    no_reward = "" if reward.kind != "none" else 'is for a learned reward, and `reward.kind` is "none"'
    why = {
        "training.kl_budget": no_pull,
        **{f"training.{name}": no_grpo for name in FOR_GRPO},
        **{f"reward.{name}": no_grpo for name in ("grader", "mix")},
        "training.liked": no_sft,
        **{f"training.{name}": no_general for name in ("general", "general_file")},
        "reward.metrics": no_reward,
        **{f"persons.{name}": no_persons for name in msgspec.structs.asdict(config.persons) if name != "corrections"},
    }
    return [(field, f"{wrong}; or leave it out") for field, wrong in why.items() if wrong and _is_set(plain, field)]


def _is_set(plain: object, field: str) -> bool:
    """Whether a field stands in the file, with whatever value."""
    table, _, name = field.partition(".")
    found = plain.get(table) if isinstance(plain, dict) else None
    return isinstance(found, dict) and name in found


def _is_zone(name: str | None) -> bool:
    try:
        return name is None or bool(ZoneInfo(name).key)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # The name is looked for as a file, which may be a folder, or lie elsewhere.
        return False


def _in_words(error: str) -> str:
    what, _, place = error.rpartition(" - at `$")
    what, path = (what, place.rstrip("`").lstrip(".")) if what else (error, "")
    if unknown := _UNKNOWN.fullmatch(what):
        return f"there is no field `{f'{path}.{unknown[1]}'.lstrip('.')}`; see docs/loop.md for those that there are"
    what = what.replace("Object missing required field", "this field is missing:")
    return f"`{path}`: {what[:1].lower()}{what[1:]}" if path else f"{what[:1].lower()}{what[1:]}"
