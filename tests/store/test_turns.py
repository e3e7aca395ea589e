"""Recorded turns in the store: fates by the one rule, quota and days, what is left of what is gone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from loreloop.protocol.episodes import LEARNABLE, Person
from loreloop.protocol.loop_rest import MarkTurn, UseTurns
from loreloop.protocol.token_ids import pack_ids, pack_logprobs
from loreloop.store import deleted, deployments, persons, turn_keeping, turn_marks, turn_removal, turn_uses, turns
from loreloop.store.deleted import DeletedPage
from loreloop.store.rows import Arm, RecordingRule, Split
from loreloop.store.store import empty_database
from loreloop.store.turn_bodies import NewTurn, TurnBody, packed, unpacked
from loreloop.store.turn_tables import EPISODES, TURN_BODIES, TURN_TALLIES, TURNS
from loreloop.store.turns import Reader, Wanted
from tests.store.fates import Facts, fate_of

BODY = TurnBody(
    messages=({"role": "user", "content": "hi"},),
    answer={"role": "assistant", "content": "yes"},
    base_model="fake",
    tokens=pack_ids([1, 2]),
    logprobs=pack_logprobs([-0.5, -0.25]),
)
DAY = 86400.0


def new(number: int, body: bytes | None = packed(BODY), **fields: Any) -> NewTurn:
    usual: dict[str, Any] = {
        "id": f"t{number}",
        "episode_id": f"e{number}",
        "deployment": "bot",
        "key_id": "k",
        "user": "ann",
        "created": float(number),
        "arm": "main",
        "version": 1,
        "version_created": 1.0,
        "base_model": "fake",
        "revision": None,
        "consent": True,
        "side": False,
        "body": body,
    }
    return NewTurn(**usual | fields)


def database(**rule: Any) -> Any:
    """A connection to an empty database with a deployment that records."""
    connection = empty_database().connect()
    recording = RecordingRule(record=True, **rule)
    deployments.set(connection, "bot", None, Split(Arm("fake", "fake")), 1.0, "me", recording=recording)
    return connection


def listed(connection: Any, **wanted: Any) -> dict[str, str]:
    return {turn.id: turn.fate for turn in turns.page(connection, Wanted("bot", limit=1000, **wanted)).turns}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("keep", "keep", "keep", "drop", "side", "refuse", "use", "hear", "hear episode", "expire")),
        st.integers(0, 5),  # which turn
        st.integers(0, 2),  # its episode, or whether a mark is set
        st.integers(0, 1),  # which weights
    ),
    max_size=30,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_rows_have_the_fate_that_the_rule_gives_their_facts(steps: list[tuple[str, int, int, int]]) -> None:
    connection = database()
    known: dict[str, dict[str, Any]] = {}
    heard_episodes: set[str] = set()
    for step, number, other, weights in steps:
        turn_id, revision = f"t{number}", f"r{weights}"
        if step in ("keep", "drop"):
            if turn_id not in known:
                body = packed(BODY) if step == "keep" else None
                episode, unfinished = f"e{other}", number == 5
                made = new(number, body, episode_id=episode, revision=revision, unfinished=unfinished)
                turn_keeping.keep(connection, [made])
                # Silence in an episode in which somebody has said no is no.
                consent = all(facts["consent"] for facts in known.values() if facts["episode"] == episode)
                facts = {"state": "kept" if body else "dropped", "consent": consent, "side": False, "candidate": None}
                facts |= {"unfinished": unfinished, "heard": False}
                known[turn_id] = facts | {"episode": episode, "revision": revision}
        elif turn_id not in known:
            continue
        elif step == "side":
            turn_marks.mark(connection, turn_id, MarkTurn(side=bool(other)), "k")
            known[turn_id]["side"] = bool(other)
        elif step == "refuse":
            turn_marks.mark(connection, turn_id, MarkTurn(consent=False), "somebody else")
            known[turn_id]["consent"] = False
        elif step == "use":
            left = turn_uses.use(connection, "bot", UseTurns(f"c{other}", (turn_id,)), 1.0)
            fate = fates_of(known, heard_episodes)[turn_id]
            assert left.unknown == ((turn_id,) if fate == "dropped" else ())
            assert left.withdrawn == ((turn_id,) if fate in ("no_consent", "side", "unfinished") else ())
            if fate in LEARNABLE:
                known[turn_id]["candidate"] = f"c{other}"
        elif step == "hear":
            turns.hear(connection, turn_id, is_heard=bool(other))
            known[turn_id]["heard"] = bool(other)
        elif step == "hear episode":
            episode_id = known[turn_id]["episode"]
            of_id = select(EPISODES.c.number).where(EPISODES.c.id == episode_id)
            turns.hear_episode(connection, connection.scalar(of_id), is_heard=True)
            heard_episodes.add(episode_id)
        else:
            # Everything that is kept and older than this turn, itself included.
            while turn_removal.sweep(connection, number + 0.5 + 30 * DAY):
                pass
            for name, facts in known.items():
                if facts["state"] == "kept" and int(name[1:]) <= number:
                    facts["state"] = "expired"
    expected = fates_of(known, heard_episodes)
    assert listed(connection) == expected
    assert turns.counts(connection, "bot").fates == {f: [*expected.values()].count(f) for f in {*expected.values()}}


def fates_of(known: dict[str, dict[str, Any]], heard_episodes: set[str]) -> dict[str, str]:
    weights_of: dict[str, set[str]] = {}
    for facts in known.values():
        weights_of.setdefault(facts["episode"], set()).add(facts["revision"])
    return {
        turn_id: fate_of(
            Facts(
                state=facts["state"],
                consent=facts["consent"],
                side=facts["side"],
                unfinished=facts["unfinished"],
                is_mixed=len(weights_of[facts["episode"]]) > 1,
                candidate=facts["candidate"],
                is_heard=facts["heard"] or facts["episode"] in heard_episodes,
            )
        )
        for turn_id, facts in known.items()
    }


def test_the_quota_takes_the_oldest_and_says_so() -> None:
    large = packed(msgspec.structs.replace(BODY, tokens=pack_ids(range(100_000)), logprobs=pack_logprobs([0.1] * 10)))
    connection = database(quota_mib=1)
    n = (1 << 20) // len(large) + 5
    for number in range(n):
        turn_keeping.keep(connection, [new(number, large)])
    fates = listed(connection)
    counts = turns.counts(connection, "bot")
    assert counts.n_bytes <= 1 << 20
    assert 0 < counts.expired == [*fates.values()].count("expired") < n
    assert [*fates.values()] == ["expired"] * counts.expired + ["waiting"] * (n - counts.expired)
    assert connection.scalar(select(func.count()).select_from(TURN_BODIES)) == n - counts.expired
    gone = turns.find(connection, "t0")
    assert gone is not None
    assert (gone.messages, gone.person.user) == ((), "")


def test_what_is_over_its_days_expires_and_the_rest_stays() -> None:
    connection = database(retention_days=2)
    turn_keeping.keep(connection, [new(0, created=0.0), new(1, created=DAY)])
    while turn_removal.sweep(connection, 2 * DAY + 1):
        pass
    assert listed(connection) == {"t0": "expired", "t1": "waiting"}
    # What was read before it expired was free to be learned from, and may have been.
    left = turn_uses.use(connection, "bot", UseTurns("c", ("t0", "t1", "never")), 1.0)
    assert (left.unknown, left.withdrawn) == (("never",), ())


@pytest.mark.parametrize(("why", "n_left"), [("days", 0), ("quota", 7), ("traces", 2)])
def test_a_sweep_goes_bit_by_bit(why: str, n_left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes meanwhile waits for one bit, not for a year's turns."""
    monkeypatch.setattr(turn_removal, "AT_ONCE", 4)
    monkeypatch.setattr(turn_removal, "MOST_AT_ONCE", 8)
    monkeypatch.setattr(turn_removal, "MOST_TRACES", 2 if why == "traces" else 1000)
    connection = database(retention_days=2, quota_mib=1)
    turn_keeping.keep(connection, [new(n, None if why == "traces" else packed(BODY)) for n in range(50)])
    if why == "quota":
        connection.execute(update(TURNS).values(n_bytes=1 << 17))
        connection.execute(update(TURN_TALLIES).values(n_bytes=50 << 17))
    here = TURNS.c.state == ("dropped" if why == "traces" else "kept")
    left, n_bits = 50, 0
    while turn_removal.sweep(connection, 10 * DAY if why == "days" else 0.0):
        now = connection.scalar(select(func.count()).select_from(TURNS).where(here)) or 0
        assert 0 < left - now <= 9
        left, n_bits = now, n_bits + 1
    assert n_bits >= 5
    assert left == n_left


def test_rows_without_content_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_removal, "MOST_TRACES", 3)
    connection = database()
    turn_keeping.keep(connection, [new(n, None) for n in range(10)])
    turn_keeping.keep(connection, [new(10)])
    while turn_removal.sweep(connection, 11.0):
        pass
    assert [*listed(connection)] == ["t7", "t8", "t9", "t10"]
    assert turns.counts(connection, "bot").dropped == 10
    assert connection.scalar(select(func.count()).select_from(EPISODES)) == 4


def test_an_id_of_an_episode_belongs_to_its_key() -> None:
    connection = database()
    turn_keeping.keep(
        connection, [new(0, episode_id="e", key_id="a", revision="r1"), new(1, episode_id="e", revision="r2")]
    )
    assert listed(connection) == {"t0": "waiting", "t1": "waiting"}
    page = turns.episode_page(connection, "e", Reader("admin", reads_all=True), 0, 10)
    assert {turn.person.key_id for turn in page.turns} == {"a", "k"}


def test_a_marked_turn_stands_anew_behind_the_others() -> None:
    connection = database()
    turn_keeping.keep(connection, [new(0), new(1)])
    last = turns.page(connection, Wanted("bot")).next
    turn_marks.mark(connection, "t0", MarkTurn(side=True), "k")
    assert [turn.id for turn in turns.page(connection, Wanted("bot", after=last)).turns] == ["t0"]
    assert turn_marks.mark(connection, "t1", MarkTurn(), "k").number == last  # nothing was said


def test_a_page_ends_before_it_becomes_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAGE_BYTES", 1)
    connection = database()
    turn_keeping.keep(connection, [new(n) for n in range(3)])
    seen, after = [], 0
    while (page := turns.page(connection, Wanted("bot", after=after))).turns:
        seen += [turn.id for turn in page.turns]
        after = page.next
    assert seen == ["t0", "t1", "t2"]


def test_a_deleted_person_leaves_nothing_but_the_note() -> None:
    connection = database()
    turn_keeping.keep(connection, [new(0), new(1, user="bob"), new(2, episode_id="e1", user="ann")])
    turn_uses.use(connection, "bot", UseTurns("c1", ("t0", "t1"), "tinker://r"), 5.0)
    gone = persons.forget(connection, Person("k", "ann"), 9.0)
    assert (gone.turns, [use.candidate for use in gone.trained]) == (2, ["c1"])
    assert listed(connection) == {"t1": "used"}
    assert deleted.page(connection, "bot", "", 10) == DeletedPage((Person("k", "ann"),), None)
    assert turns.counts(connection, "bot").n_bytes == len(packed(BODY))
    assert connection.scalar(select(func.count()).select_from(TURN_BODIES)) == 1
    # Of her the database file itself holds no word any more but the name in the notes.
    held = connection.execute(select(TURNS.c.user)).scalars().all()
    assert "ann" not in held


def test_a_body_comes_back_as_it_was() -> None:
    assert unpacked(packed(BODY)) == BODY
