"""Statements in the store: what counts, beside a plain model of the rules; bounds; and kills."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Connection, event, insert, select

from loreloop.protocol.errors import BadRequest, Conflict, NotFound
from loreloop.protocol.feedback import Feedback, Source
from loreloop.protocol.feedback_rules import STRENGTH, standing
from loreloop.store import feedback, feedback_removal
from loreloop.store.feedback import Asked
from loreloop.store.feedback_tables import note_askers
from loreloop.store.schema import METADATA
from loreloop.store.store import empty_database
from loreloop.store.turn_tables import EPISODES, TURNS
from tests.store.place import Place
from tests.store.test_store_kills import lines_until_killed, numbers


def said(id: str, **fields: Any) -> Feedback:
    usual = {"target_id": "turn", "metric": "thumb", "value": True, "who": "ann", "giver": "key", "deployment": "bot"}
    return Feedback(number=0, id=id, level="inference", **usual | {"created": 1.0} | fields)


class Rules(RuleBasedStateMachine):
    """Random voices speak, change their minds, go over each other and take back. The model holds, for each voice and
    target, what it says now, and forgets the rest."""

    @initialize()
    def begin(self) -> None:
        self.connection = empty_database().connect()
        for target in "xyz":
            _keep_turn(self.connection, target)
        # Voice and subject → id, value.
        self.now: dict[tuple[str, Source, str], tuple[str, object]] = {}
        self.sent: dict[str, Feedback] = {}
        self.n = 0
        self.after, self.read = 0, dict[str, Feedback]()

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()

    def voice(self, one: Feedback) -> tuple[str, Source, str]:
        pair = " ".join(sorted([one.target_id, str(one.value)]))
        return one.who, one.source, pair if one.metric == "preference" else one.target_id

    @rule(
        who=st.sampled_from("ab"),
        source=st.sampled_from(["human", "judge", "implicit"]),
        about=st.sampled_from("xy"),
        value=st.booleans(),
        chosen=st.booleans(),
    )
    def give(self, who: str, source: Source, about: str, value: bool, chosen: bool) -> None:
        self.n += 1
        sent = said(f"id-{self.n}", who=who, source=source, target_id=about, value=value)
        kept = feedback.give(self.connection, Asked(sent, chosen=chosen))
        before = self.now.get(self.voice(sent))
        if before and not chosen and before[1] == value and self.sent[before[0]].overrides is None:
            assert kept.id == before[0], "who repeats an opinion says nothing new"
            return
        self.sent[kept.id] = sent
        self.now[self.voice(sent)] = (kept.id, value)

    @rule(who=st.sampled_from("ab"), pair=st.permutations("xyz"), chosen=st.booleans())
    def prefer(self, who: str, pair: list[str], chosen: bool) -> None:
        self.n += 1
        sent = said(f"id-{self.n}", who=who, target_id=pair[0], metric="preference", value=pair[1])
        kept = feedback.give(self.connection, Asked(sent, chosen=chosen))
        before = self.now.get(self.voice(sent))
        same = before is not None and self.sent[before[0]].target_id == pair[0]
        if before and same and not chosen and self.sent[before[0]].overrides is None:
            assert kept.id == before[0]
            return
        self.sent[kept.id] = sent
        self.now[self.voice(sent)] = (kept.id, pair[1])

    @rule(data=st.data(), source=st.sampled_from(["human", "code", "judge", "implicit"]), who=st.sampled_from("ab"))
    def go_over(self, data: st.DataObject, source: Source, who: str) -> None:
        if not self.sent:
            return
        old = self.sent[data.draw(st.sampled_from(sorted(self.sent)))]
        self.n += 1
        fields = {"target_id": old.target_id, "metric": old.metric, "value": old.value}
        sent = said(f"id-{self.n}", who=who, source=source, overrides=old.id, **fields)
        counts = self.now.get(self.voice(old), ("", False))[0] == old.id
        own = self.voice(sent) == self.voice(old)
        if not counts or not (own or STRENGTH[source] > STRENGTH[old.source]):
            with pytest.raises(BadRequest):
                feedback.give(self.connection, Asked(sent, chosen=True))
            return
        feedback.give(self.connection, Asked(sent, chosen=True))
        del self.now[self.voice(old)]
        self.sent[sent.id] = sent
        self.now[self.voice(sent)] = (sent.id, sent.value)

    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        if not self.sent:
            return
        id = data.draw(st.sampled_from(sorted(self.sent)))
        assert feedback.retract(self.connection, id) == feedback.retract(self.connection, id)
        self.now = {voice: says for voice, says in self.now.items() if says[0] != id}

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        if not self.sent:
            return
        sent = self.sent[data.draw(st.sampled_from(sorted(self.sent)))]
        assert feedback.give(self.connection, Asked(sent, chosen=True)) == feedback.find(self.connection, sent.id)
        other = msgspec.structs.replace(sent, why="another reason")
        with pytest.raises(Conflict):
            feedback.give(self.connection, Asked(other, chosen=True))

    @invariant()
    def turns_know_what_stands(self) -> None:
        """A turn is heard where a statement about it counts, and waits again when the last one no longer does."""
        heard = {*self.connection.scalars(select(TURNS.c.id).where(TURNS.c.heard > 0))}
        assert heard == {self.sent[id].target_id for id, _ in self.now.values()}

    @rule(limit=st.integers(1, 5))
    def read_on(self, limit: int) -> None:
        """A reader that goes on from where it stood knows in the end what counts."""
        page = feedback.page(self.connection, "bot", self.after, limit)
        self.after = page.next
        self.read |= {each.id: each for each in page.feedback}

    @rule()
    def compare(self) -> None:
        while (page := feedback.page(self.connection, "bot", self.after, 3)).feedback:
            self.after = page.next
            self.read |= {each.id: each for each in page.feedback}
        counting = {each.id for each in standing(self.read.values())}
        assert counting == {id for id, _ in self.now.values()}
        assert {id for id in self.read if feedback.counts(self.connection, id)} == counting


TestRules = Rules.TestCase
TestRules.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_what_was_acknowledged_survives_one_kill_after_another(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    given, retracted = set[int](), set[int]()
    for life, seconds in enumerate((0.05, 0.4, 0.6)):
        place.store.close()
        lines = lines_until_killed(place, "tests.store.marking", str(life * 100_000), seconds=seconds)
        given |= numbers(lines, "given")
        retracted |= numbers(lines, "retracted")
        place.open()
        kept = place.read(feedback.page, "bot", 0, 1_000_000).feedback
        assert given <= {int(each.who) for each in kept}
        assert retracted <= {int(each.who) for each in kept if each.retracted}
        assert len({each.id for each in kept}) == len(kept)
    assert given
    assert retracted
    place.store.close()


def test_a_number_is_never_given_twice(place: Place) -> None:
    """A reader stands behind the last number: what came under it again would never be read."""
    first = place.write(feedback.give, Asked(said("first")))
    assert place.write(feedback_removal.sweep_orphans, 0, 100.0, 10) == first.number
    assert place.read(feedback.page, "bot", 0, 9).feedback == ()
    assert place.write(feedback.give, Asked(said("second"))).number > first.number


def test_feedback_is_found_by_what_it_is_about(place: Place) -> None:
    for number in range(3):
        place.write(feedback.give, Asked(said(f"id-{number}", target_id=f"t{number}")))
    assert [each.id for each in place.read(feedback.about, ["t2", "t0", "t7"])] == ["id-0", "id-2"]


def test_what_is_about_nothing_is_swept_once_it_is_old(place: Place) -> None:
    place.write(_keep_turn, "kept")
    for number, target in enumerate(["kept", "lost", "lost", "young"]):
        created = 9e9 if target == "young" else 1.0
        place.write(feedback.give, Asked(said(f"id-{number}", target_id=target, who=str(number), created=created)))
    after = place.write(feedback_removal.sweep_orphans, 0, 100.0, 2)
    assert [each.target_id for each in place.read(feedback.page, "bot", 0, 9).feedback] == ["kept", "lost", "young"]
    after = place.write(feedback_removal.sweep_orphans, after, 100.0, 2)
    assert [each.target_id for each in place.read(feedback.page, "bot", 0, 9).feedback] == ["kept", "young"]
    assert place.write(feedback_removal.sweep_orphans, after, 100.0, 2) == after


def test_statements_of_an_older_database_are_told_whose_they_are(place: Place) -> None:
    place.write(_keep_turn, "kept")
    for number, (level, target) in enumerate(
        [("inference", "kept"), ("inference", "gone"), ("episode", "one"), ("episode", "two"), ("episode", "kept")]
    ):
        sent = msgspec.structs.replace(said(f"id-{number}", target_id=target), level=level)
        place.write(feedback.give, Asked(sent))

    def fill(connection: Connection) -> None:
        row = {"deployment": "bot", "weights": "w", "mixed": False, "heard": 0}
        for id, key in (("one", "a"), ("two", "a"), ("two", "b")):
            connection.execute(insert(EPISODES).values(row | {"id": id, "key_id": key}))
        note_askers(connection)
        note_askers(connection)

    place.write(fill)
    kept = place.read(feedback.page, "bot", 0, 9).feedback
    assert [each.asker for each in kept] == ["k", "", "a", "", ""]


def test_a_page_of_long_statements_is_shorter(place: Place) -> None:
    for number in range(50):
        sent = said(f"id-{number}", metric="comment", value="x" * (1 << 18), who=str(number))
        place.write(feedback.give, Asked(sent))
    read, after = list[str](), 0
    while (page := place.read(feedback.page, "bot", after, 1000)).feedback:
        assert len(page.feedback) <= feedback.PAGE_BYTES >> 18
        read, after = [*read, *(each.id for each in page.feedback)], page.next
    assert read == [f"id-{number}" for number in range(50)]


def _keep_turn(connection: Connection, id: str) -> None:
    row = {"id": id, "deployment": "bot", "episode": 1, "key_id": "k", "user": "", "created": 1.0, "state": "kept"}
    row |= {"arm": "main", "version": 1, "consent": True, "side": False, "heard": 0, "n_bytes": 0}
    connection.execute(insert(TURNS).values(row))


def test_nothing_is_retracted_that_is_not_there(place: Place) -> None:
    with pytest.raises(NotFound):
        place.write(feedback.retract, "nothing")


def test_no_query_reads_the_whole_table() -> None:
    """What one statement costs must not grow with the number of those before."""
    engine = empty_database()
    queries = list[tuple[str, Any]]()
    with engine.connect() as connection:
        feedback.give(connection, Asked(said("one")))

        @event.listens_for(engine, "before_cursor_execute")
        def note(_1: object, _2: object, statement: str, parameters: Any, _3: object, _4: object) -> None:
            queries.append((statement, parameters))

        feedback.give(connection, Asked(said("two", value=False)))
        feedback.give(connection, Asked(said("three", source="code", overrides="two"), may_all=True))
        feedback.give(connection, Asked(said("four", metric="preference", value="other")))
        feedback.retract(connection, "three")
        feedback.n_given(connection, "key", "ann", 10)
        feedback.page(connection, "bot", 1, 10)
        feedback.about(connection, ["turn"])
        feedback_removal.sweep_orphans(connection, 1, 100.0, 10)
        for statement, parameters in [*queries]:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            scans = [row.detail for row in plan if "SCAN feedback" in row.detail]
            # The feed alone goes by deployment, from a number on.
            if "number >" not in statement.partition("WHERE")[2]:
                scans += [row.detail for row in plan if "feedback_of_deployment" in row.detail]
            assert scans == [], statement
    assert len(queries) > 10
    assert "feedback" in METADATA.tables
