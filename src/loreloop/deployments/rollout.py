"""Changing what a deployment answers with: who may, with what, and not before the weights have answered once.

Weights take their time to answer, and others act meanwhile: what was looked at before is looked at again in the
transaction that writes. Knows no HTTP and no engine: how weights are made to answer is a function it is given.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from loreloop.deployments.model_names import ModelNames
from loreloop.protocol.episodes import Person
from loreloop.protocol.errors import BadRequest, Conflict, NotFound
from loreloop.protocol.jobs import TUNED
from loreloop.protocol.loop_rest import SetDeployment, SetPerson
from loreloop.protocol.paths import SCHEME
from loreloop.store import audit, deployments, person_arms, tuned_models
from loreloop.store.account_rows import AuditEntry
from loreloop.store.deployments import Owned
from loreloop.store.rows import Arm, Deployment, KeyRow, PersonArm, RecordingRule, Split
from loreloop.store.store import Store
from loreloop.text.redaction import redactor

Warm = Callable[[Arm], Awaitable[None]]  # raises where the weights do not answer


@dataclass(frozen=True)
class Rollout:
    """One key's changes. `is_admin` keys may change everything, others what is made of their own checkpoints;
    those that are not `is_owner` have nothing of their own and see what they were given."""

    store: Store
    names: ModelNames
    key: KeyRow
    is_admin: bool
    is_owner: bool
    warm: Warm

    async def set(self, name: str, wanted: SetDeployment) -> Deployment:
        """Makes a new version with a target and perhaps a canary. BadRequest, NotFound or Conflict where this key may
        not, and whatever `warm` raises where the weights do not answer."""
        deployments.check_name(name)
        if self.names.find_base(name) is not None:
            raise BadRequest(f"{name!r} is a base model; give the deployment a name of its own.")
        old = self._changeable(name)
        _check_expected(name, old, wanted.expected_version)
        recording = recording_of(wanted, old)
        if (wanted.canary is not None) != (0 < wanted.canary_percent < 100):
            raise BadRequest("A canary and its canary_percent, between 0 and 100, come together or not at all.")
        targets = [wanted.target, wanted.canary] if wanted.canary else [wanted.target]
        found = [self._owned(target) for target in targets]
        split = Split(found[0].arm, found[1].arm, wanted.canary_percent) if wanted.canary else Split(found[0].arm)
        # The owner is the key that owns a checkpoint among the targets; a bare base belongs to nobody.
        owner = next((each.key_id for each in found if each.key_id), None)
        await self._warm(split)

        def write(connection: Connection) -> Deployment:
            # The weights have taken their time, and somebody else may have made a version meanwhile.
            _check_unchanged(connection, name, old)
            deployments.check_there(connection, split)
            self._note(connection, "set", name)
            return deployments.set(connection, name, owner, split, time.time(), self.key.name, recording=recording)

        return await self.store.write(write)

    async def rollback(self, name: str) -> Deployment:
        """Makes the version before the current one the newest again, after its weights have answered."""
        old = self._changeable(name)
        await self._warm(self.store.read(deployments.before, name).split)

        def write(connection: Connection) -> Deployment:
            _check_unchanged(connection, name, old)
            self._note(connection, "rollback", name)
            return deployments.rollback(connection, name, time.time(), self.key.name)

        return await self.store.write(write)

    async def remove(self, name: str) -> None:
        """Deletes the deployment and its history. NotFound or Conflict where this key may not."""
        # A name that this key may not know of must be refused as unknown, before anything is said about whose it is.
        self.visible(name)
        old = self._changeable(name)

        def write(connection: Connection) -> None:
            _check_unchanged(connection, name, old)
            deployments.remove(connection, name)
            self._note(connection, "delete", name)

        await self.store.write(write)

    def _note(self, connection: Connection, action: str, name: str) -> None:
        details = {"deployment": name, "by": self.key.name}
        audit.note(connection, AuditEntry(time.time(), f"deployment_{action}", self.key.id, details))

    async def set_person(self, name: str, user: str, wanted: SetPerson) -> PersonArm:
        """Gives one person weights of their own, once these have answered. Raises as `set` and `person_of` do."""
        if not user:
            raise BadRequest("Weights of one's own are for a user with a name, and the address names none.")
        person, old = await self.person_of(name, user, wanted.key), self._changeable(name)
        arm = self._owned(wanted.target).arm
        await self.warm(arm)
        row = PersonArm(person, arm, time.time(), self.key.name)

        def write(connection: Connection) -> None:
            _check_unchanged(connection, name, old)
            if arm.revision is not None:
                deployments.arm_of(connection, arm.target)
            person_arms.set(connection, name, row)

        await self.store.write(write)
        return row

    async def person_of(self, name: str, user: str, key_id: str | None) -> Person:
        """The person who is called `user`, of a key that is named or, where one key alone has such a user in the
        deployment, of that. BadRequest where several have, NotFound where the deployment is none of this key's."""
        self.managed(name)
        if key_id is None:
            found = await self.store.read_apart(person_arms.keys_of_user, name, user)
            if len(found) > 1:
                raise BadRequest(
                    f"{len(found)} keys have a user {user[:80]!r} in {name!r}; say whose is meant by key: "
                    f"{', '.join(found[:8])}."
                )
            key_id = found[0] if found else self.key.id
        return Person(key_id, user)

    def managed(self, name: str) -> Deployment:
        """The current version, for those who may change it."""
        found = self.visible(name)
        self._changeable(name)
        return found

    def visible(self, name: str) -> Deployment:
        """The current version, for those who may know of it."""
        found = self.store.read(deployments.find, name)
        if found is None or not (self.is_admin or self._is_own(found) or name in self.key.deployments):
            raise NotFound(f"There is no deployment {name!r}; `loreloop deploy list` shows them.")
        return found

    def _is_own(self, found: Deployment) -> bool:
        return self.is_owner and found.key_id in (None, self.key.id)

    async def _warm(self, split: Split) -> None:
        for arm in split.arms:
            await self.warm(arm)

    def _changeable(self, name: str) -> Deployment | None:
        """The current version, None where there is none; Conflict where it is another key's."""
        found = self.store.read(deployments.find, name)
        if found is not None and not self.is_admin and found.key_id != self.key.id:
            raise Conflict(f"The deployment {name!r} is not this key's to change; choose another name.")
        return found

    def _owned(self, target: str) -> Owned:
        if target.startswith(TUNED):
            # A fine-tuned model's name is short for its checkpoint, which the deployment then holds on to.
            owner = None if self.is_admin else self.key.id
            target = self.store.read(tuned_models.get, owner, target).path
        if target.startswith(SCHEME):
            found = self.store.read(deployments.arm_of, target)
            if not self.is_admin and found.key_id != self.key.id:
                raise NotFound(f"There is no checkpoint {target} of this key.")
            return found
        if not self.is_admin:
            raise BadRequest(f"A bare base such as {target!r} is deployed by admin keys only; name a checkpoint.")
        return Owned(Arm(target, self.names.base(target)), None)


def recording_of(wanted: SetDeployment, old: Deployment | None) -> RecordingRule:
    """What shall be recorded: what is asked for, and for the rest what was. BadRequest for a rule of redaction that
    is none."""
    before = old.recording if old else RecordingRule()
    given = {name: value for name in RecordingRule.__struct_fields__ if (value := getattr(wanted, name)) is not None}
    rule = msgspec.structs.replace(before, **given)
    redactor(rule.redact)
    return rule


def _check_expected(name: str, old: Deployment | None, expected: int | None) -> None:
    """Whoever changes what they have looked at must not undo what somebody else has done since."""
    version = old.version if old else 0
    if expected not in (None, version):
        raise Conflict(
            f"The deployment {name!r} is at version {version}, and this change was meant for version {expected}; look "
            "at its history and try again."
        )


def _check_unchanged(connection: Connection, name: str, old: Deployment | None) -> None:
    """`old` is the whole version, not its number: a name that was deleted and taken anew begins at 1 again."""
    if deployments.find(connection, name) != old:
        raise Conflict(f"The deployment {name!r} was changed meanwhile; look at its history and try again.")
