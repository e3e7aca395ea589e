"""One statement on its way into the store: who speaks, whether they may, what it is about, and what is answered.

Every way in, a key's, a page's, a link's and TensorZero's, ends here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from loreloop.config import LimitConfig
from loreloop.http.loop.redacting import redacted
from loreloop.http.loop.rooms import Rooms, bounds_of, names_person
from loreloop.http.loop.targets import Targets
from loreloop.http.rates import Rate, Rates
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest, Conflict, Gone, NotFound, TooLarge, Unavailable
from loreloop.protocol.feedback import GOLDEN_TAG, OF_PERSONS, OPERATOR, PREFERENCE, Feedback, Source
from loreloop.protocol.feedback_rest import GiveFeedback
from loreloop.protocol.feedback_rules import check_level, checked_value, metric_named, usual_source
from loreloop.store import deleted, deployments, feedback, metrics, turn_keeping
from loreloop.store.feedback import Asked
from loreloop.store.rows import KeyRow
from loreloop.store.store import Store
from loreloop.store.turns import Known

OF_KEY, OF_PERSON = Rate(per_second=100, burst=2000), Rate(per_second=2, burst=600)
LONGEST_PUBLIC = 1 << 14  # characters of a text that comes by what everybody can read
NOTES = {
    "kept": None,
    "pending": "The turn is on its way into the store; this feedback is kept already.",
    "dropped": "The turn was dropped before it could be kept, so this feedback is never trained on.",
}


class Speaker(msgspec.Struct, frozen=True):
    """The key by which a statement comes, and how. `deployment` is the only one that it may speak of, "" for no such
    bound, as far as the key may still do so itself; `is_admin` and `is_general` say what the key may beside what its
    scopes name."""

    key: KeyRow
    channel: Literal["", "browser", "link"] = ""
    deployment: str = ""
    is_admin: bool = False
    is_general: bool = False
    rate: Rate = OF_KEY
    name: str = ""  # of its bucket; "": the giver

    @property
    def giver(self) -> str:
        """Whose statements a statement joins. A key with an end is the operator's for one command, and the next command
        speaks for the same operator."""
        id = self.key.id if self.key.expires is None else f"{OPERATOR}{self.key.name}"
        return f"{id}/{self.channel}" if self.channel else id

    def giver_of(self, source: Source) -> str:
        """Whose words a statement of a source are. What behaviour says is found by a rule, which finds the same for
        every operator and would count for each of them."""
        return OPERATOR if source == "implicit" and self.giver.startswith(OPERATOR) else self.giver


@dataclass
class Desk:
    """What giving needs from one request to the next."""

    targets: Targets
    rates: Rates = field(default_factory=Rates)
    rooms: Rooms = field(default_factory=Rooms)


@dataclass(frozen=True)
class Giving:
    """The desk of one server, over its store."""

    store: Store
    desk: Desk
    limits: LimitConfig = field(default_factory=LimitConfig)

    def admit(self, speaker: Speaker) -> Speaker:
        """The speaker, once for each request; Unavailable where that comes too fast. Before anything is read or looked
        up, so that guessing ids is bounded as well."""
        self._take(speaker.name or speaker.giver, speaker.rate)
        return speaker

    async def give(self, speaker: Speaker, body: GiveFeedback) -> dict[str, Any]:
        """Keeps a statement and says what became of it; the answer of a retry is that of the first time.

        Unavailable for a person who comes too fast, NotFound, Gone, Conflict and BadRequest as `target` and the rules
        raise them.
        """
        target = self.target(speaker, body.target_id)
        said = await self._redacted(self._said(speaker, body, target, time.time()))
        if names_person(said):
            self._take(f"{said.giver} {said.who}", OF_PERSON)
        persons = persons_of(speaker, said, target)
        # Looked at here for whoever only tries, and with the writing again, since a deletion may come between.
        self.store.read(deleted.check_none, persons)
        if body.dryrun:
            return told(said, target)
        asked = Asked(
            said, chosen=body.id is not None, may_all=speaker.is_admin and not speaker.channel, persons=persons
        )
        return told(await self._kept(asked), target)

    def _take(self, name: str, rate: Rate) -> None:
        if wait := self.desk.rates.take(name, rate, time.monotonic()):
            raise Unavailable(
                f"Feedback comes too fast: {rate.burst:g} at once are taken, and then {rate.per_second:g} in a second. "
                "Nothing was kept of this; send it again later.",
                wait,
            )

    async def _redacted(self, said: Feedback) -> Feedback:
        rule = self.store.read(turn_keeping.rule_of, said.deployment)
        if rule is None or not rule.redact:
            return said
        return await asyncio.to_thread(redacted, said, rule.redact)

    async def _kept(self, asked: Asked) -> Feedback:
        """The statement as it is kept; TooLarge where there is no room. A retry finds what is there, and needs none."""
        said = asked.said
        is_retry = asked.chosen and self.store.read(feedback.find_own, said.giver, said.id) is not None
        taken = [] if is_retry else await self.desk.rooms.take(self.store, bounds_of(said, self.limits))
        is_new = False
        try:
            kept = await self.store.write(feedback.give, asked)
            # Under another id, perhaps, but as it was said just now.
            is_new = (kept.giver, kept.created) == (said.giver, said.created)
        finally:
            if not is_new:
                self.desk.rooms.give_back(taken)
        return kept

    def target(self, speaker: Speaker, id: str) -> Known:
        """What the id names. NotFound where it names nothing, or nothing of which this speaker may speak; Gone where
        its time is over; Conflict where it was not recorded, or is the id of several episodes."""
        known = self.desk.targets.issued(id)
        usable = [each for each in known if self.may_speak_of(speaker, each.deployment, each.key_id)]
        if not usable:
            raise NotFound(
                f"There is no turn or episode {id[:80]!r} on which this key may give feedback: it is not an id of this "
                "server's, or was answered by nothing that records (a deployment with record: true does), or belongs "
                "to another key."
            )
        found = usable[0]
        # A stranger's episode of the same id is no hindrance: a statement says whose it is about.
        if len(usable) > 1:
            raise Conflict(
                f"There are several episodes {id[:80]!r}, since clients choose these ids; give feedback on a turn, and "
                "choose ids that nobody else does, such as UUIDs."
            )
        if found.state == "expired":
            raise Gone(f"{id[:80]!r} was kept as long as its deployment keeps turns, and is gone; nothing can use it.")
        if found.state == "unrecorded":
            raise Conflict(
                f"{id[:80]!r} was answered by the deployment {found.deployment!r}, which does not record, so there is "
                "nothing to learn from; `loreloop deploy set --record` has it record from then on."
            )
        return found

    def may_speak_of(self, speaker: Speaker, deployment: str, key_id: str) -> bool:
        """Whether a speaker may judge the answers that this deployment gave to that key."""
        if speaker.deployment and speaker.deployment != deployment:
            return False
        if speaker.is_admin or deployment in speaker.key.judged:
            return True
        if not speaker.is_general:
            return False
        if key_id == speaker.key.id:
            return True
        # What answers everybody is nobody's to judge for others.
        found = self.store.read(deployments.find, deployment)
        return found is not None and found.key_id == speaker.key.id

    async def retract(self, speaker: Speaker, id: str) -> Feedback:
        """Takes a statement back; NotFound where it is none that this speaker may take back."""
        return await self.store.write(feedback.retract, self.given(speaker, id).id)

    def given(self, speaker: Speaker, id: str) -> Feedback:
        """A statement that came by this speaker, or anyone's for an admin key."""
        found = self.store.read(feedback.find_own, speaker.giver, id) or self.store.read(feedback.find, id)
        is_all_known = speaker.is_admin and not speaker.channel
        if found is None or not (is_all_known or self._is_by(speaker, found)):
            raise feedback.not_found(id)
        return found

    def _is_by(self, speaker: Speaker, said: Feedback) -> bool:
        return said.giver == speaker.giver and speaker.deployment in ("", said.deployment)

    def _said(self, speaker: Speaker, body: GiveFeedback, target: Known, now: float) -> Feedback:
        declared = self.store.read(metrics.of_deployment, target.deployment)
        metric = metric_named(body.metric, declared, target.deployment)
        check_level(metric, target.level, is_declared=metric.name in declared)
        value = checked_value(metric, body.value)
        if metric.name == PREFERENCE:
            self._check_worse(speaker, target, str(value))
        source = body.source or usual_source(metric)
        self._check_speaker(speaker, body, source)
        return Feedback(
            number=0,
            id=body.id or str(uuid.uuid4()),
            metric=metric.name,
            level=target.level,
            target_id=target.id,
            deployment=target.deployment,
            asker=target.key_id,
            value=value,
            created=now,
            source=source,
            who=body.who,
            giver=speaker.giver_of(source),
            why=body.why,
            tags=body.tags,
            overrides=body.overrides,
        )

    def _check_speaker(self, speaker: Speaker, body: GiveFeedback, source: Source) -> None:
        if speaker.channel and source not in OF_PERSONS:
            raise BadRequest(
                f"The source is {source!r}; from a browser or a link come 'human' and 'implicit' only. Code and judges "
                "send their feedback with a key."
            )
        if speaker.channel and GOLDEN_TAG in body.tags:
            raise BadRequest(
                f"The tag {GOLDEN_TAG!r} is for labels that revisions are measured by, and from a browser or a link "
                "come none. Leave it out, or send the label with a key."
            )
        if speaker.channel and isinstance(body.value, str) and len(body.value) > LONGEST_PUBLIC:
            raise TooLarge(
                f"The text has {len(body.value)} characters; from a browser or a link {LONGEST_PUBLIC} are taken. Send "
                "longer ones with a key."
            )

    def _check_worse(self, speaker: Speaker, target: Known, worse: str) -> None:
        other = self.target(speaker, worse)
        if (other.deployment, other.level) != (target.deployment, "inference") or other.id == target.id:
            raise BadRequest(
                f"The value of a preference is the id of a turn that is worse than {target.id!r}, another one of the "
                f"deployment {target.deployment!r}; {worse[:80]!r} is none."
            )


def persons_of(speaker: Speaker, said: Feedback, target: Known) -> tuple[Person, ...]:
    """All persons that a statement is of or about. Names are a key's own: who is named may be a user of the key that
    speaks, or of the one that was answered."""
    found = [] if target.user is None else [Person(target.key_id, target.user)]
    if said.who and said.source in OF_PERSONS:
        found += [Person(speaker.key.id, said.who), Person(target.key_id, said.who)]
    return tuple(found)


def told(said: Feedback, target: Known) -> dict[str, Any]:
    """A statement as clients read it, with what became of the turn."""
    return msgspec.to_builtins(said) | {"turn": target.state, "note": NOTES[target.state]}
