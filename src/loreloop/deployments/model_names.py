"""What a model name means: a served base, an alias of one, a deployment, or weights of the asking key.

Deployments and the newest weights of a run are looked up anew for every request. Whether a key may ask at all is
decided before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from loreloop.deployments.canary import arm_for, new_episode_id
from loreloop.deployments.name_suggestions import REACH, around, not_served, refusal, saved
from loreloop.protocol.episodes import ArmName, Person
from loreloop.protocol.errors import BadRequest, Gone, NotFound
from loreloop.protocol.jobs import TUNED
from loreloop.protocol.paths import SCHEME, CheckpointKind, CheckpointPath, parse_path
from loreloop.protocol.sampling import Revision
from loreloop.store import checkpoints, deployments, person_arms, runs, samplers, sharing, tuned_models
from loreloop.store.rows import Arm, CheckpointRow, Deployment, KeyRow, RunRow
from loreloop.store.store import Store

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Asking:
    """Who asks a deployment, by the `user` of the request, and as a part of which episode, where it says so."""

    user: str | None = None
    episode_id: str | None = None


@dataclass(frozen=True)
class Deployed:
    """Which side of which deployment answers. `episode_id` is the one that was named, or a new one where turns are
    recorded."""

    deployment: Deployment
    arm: ArmName
    person: Person
    episode_id: str


@dataclass(frozen=True)
class Target:
    """`name` is what the base was called by whoever trained or asked; `base_model` is the served one; `deployed` is set
    where a deployment was asked, and `checkpoint` where weights were asked by their path."""

    name: str
    base_model: str
    revision: Revision | None = None
    deployed: Deployed | None = None
    checkpoint: CheckpointRow | None = None

    @property
    def label(self) -> str:
        """Which weights answer, in letters that fit a header: the revision's id, or the bare base's name."""
        return quote(self.revision.revision_id if self.revision else self.base_model, safe="/:")


@dataclass(frozen=True)
class Beginning:
    """What training begins from: a served base, and the training checkpoint on it, None for a fresh adapter."""

    base_model: str
    state_path: str | None = None


class ModelNames:
    """Served bases by name with their folders, aliases, and for some bases the id that they have on the hub, by which
    they can be asked as well."""

    def __init__(
        self, folders: dict[str, Path], aliases: dict[str, str], hub_ids: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        bases_by_hub_id = {hub_id: base for base, hub_id in hub_ids.items() if hub_id not in folders}
        self.folders, self.aliases = folders, bases_by_hub_id | aliases
        self.repositories = {base: hub_ids.get(base) or _repository(base) for base in folders}
        # Sorted once, so that an unknown name finds its neighbours without looking at all.
        self.ordered = sorted(self.all())

    def all(self) -> list[str]:
        """Bases, then aliases."""
        return list(self.folders | dict.fromkeys(self.aliases))

    def base(self, name: str) -> str:
        """The served base of a name or alias; a suffix after ':' (a variant of the context length) is let pass."""
        base = self.find_base(name)
        if base is None:
            raise refusal(not_served(name, self.all()), name, around(self.ordered, name))
        return base

    def find_base(self, name: str) -> str | None:
        """Like `base`, None for a name that is no base's."""
        # The whole name first, because a base may have a colon in its own.
        # What a job has made is no variant of a base, even where one is called `ft`.
        for candidate in (name,) if name.startswith(TUNED) else (name, name.split(":")[0]):
            if candidate in self.folders:
                return candidate
            if candidate in self.aliases:
                return self.aliases[candidate]
        return None

    def folder(self, name: str) -> Path:
        """The folder of a base or alias; NotFound where the name is neither."""
        return self.folders[self.base(name)]

    def repository(self, name: str) -> str:
        """The `org/model` by which a client finds the tokenizer of a base or alias, on the hub or at `/hf`."""
        return self.repositories[self.base(name)]

    def tokenizer_folder(self, repository: str) -> Path | None:
        """Whose tokenizer `/hf` gives out under this name: a base's, an alias's, or one that `repository` says."""
        base = self.find_base(repository)
        if base is None:
            base = next((base for base, name in self.repositories.items() if name == repository), None)
        return self.folders[base] if base is not None else None

    def target(self, store: Store, key: KeyRow, model: str, asking: Asking = Asking()) -> Target:
        """What to sample from for `model`: a base, an alias, a deployment, `ft:…`, `tinker://…`, or `base;tinker://…`.

        A deployment with a canary gives one user, and one episode, always the same weights; without either it draws. A
        person may have weights of their own.
        """
        base_name, _, path = model.rpartition(";")
        if path.startswith(SCHEME):
            return self._weights(store, key.id, path, base_name)
        # A key for one deployment gets that one, even where a base has the same name.
        base = None if model in key.deployments else self.find_base(model)
        if base is not None:
            return Target(model, base)
        if model.startswith(TUNED) and (tuned := store.read(tuned_models.find, key.id, model)) is not None:
            return self._weights(store, key.id, tuned.path, "")
        found = self.deployment(store, key, model)
        if found is not None:
            return self._deployed(store, found, key, asking)
        raise self._unknown(store, key, model)

    def beginning(self, store: Store, key: KeyRow, model: str) -> Beginning:
        """What training can begin from for `model`: a base or alias, `ft:…`, or `tinker://…` of saved weights.

        NotFound where this key has none of the name. Weights are taken without what their optimizer knew.
        """
        if (base := self.find_base(model)) is not None:
            return Beginning(base)
        if model.startswith(TUNED):
            tuned = store.read(tuned_models.find, key.id, model)
            if tuned is None:
                raise self._unknown(store, key, model)
            if tuned.state_path is None:
                # Of a checkpoint amid a job only the weights are kept, which is all that a new run begins from.
                row = store.read(checkpoints.get, key.id, parse_path(tuned.path))
                checkpoints.folder_of(row)
                return Beginning(tuned.base_model, tuned.path)
            model = tuned.state_path
        if not model.startswith(SCHEME):
            raise self._unknown(store, key, model)
        path = parse_path(model)
        # An adapter that was imported has both kinds under one name; either may be given.
        state = CheckpointPath(path.run_id, CheckpointKind.TRAINING, path.name)
        row = store.read(checkpoints.get, key.id, state)
        checkpoints.folder_of(row)
        return Beginning(self.base(store.read(runs.get, key.id, row.run_id).base_model), str(state))

    def deployment(self, store: Store, key: KeyRow, name: str) -> Deployment | None:
        """The current version of a deployment that this key may use."""
        # A deployment of another key looks like none at all, so that its name is not given away.
        found = store.read(deployments.find, name)
        is_visible = found is not None and (found.key_id in (None, key.id) or name in key.deployments)
        return found if is_visible else None

    def _unknown(self, store: Store, key: KeyRow, model: str) -> NotFound:
        if model in key.deployments:  # it may be a key for nothing else, which hears of no other name
            return NotFound(f"There is no deployment {model!r} yet; `loreloop deploy set {model} …` makes it.")
        candidates = [*around(self.ordered, model), *store.read(deployments.names_around, key.id, model, REACH)]
        candidates += store.read(tuned_models.names_around, key.id, model, REACH)
        own_paths = saved(store.read(checkpoints.newest, key.id, CheckpointKind.SAMPLER, REACH))
        return refusal(not_served(model, self.all()), model, candidates, own_paths)

    def _deployed(self, store: Store, deployment: Deployment, key: KeyRow, asking: Asking) -> Target:
        person = Person(key.id, asking.user or "")
        episode_id = asking.episode_id or ""
        if not episode_id and deployment.recording.record:
            episode_id = new_episode_id(deployment.name, asking.user)
        own = store.read(person_arms.find, deployment.name, person)
        name: ArmName
        # Weights of one person that are gone must not leave the person without an answer.
        if own is not None and _is_there(own):
            arm, name = own, "person"
        else:
            arm = arm_for(deployment, asking.user, episode_id or None)
            name = "canary" if arm is deployment.split.canary else "main"
        if not _is_there(arm):
            raise Gone(
                f"The deployment {deployment.name!r} answers with {arm.target}, whose files are gone; "
                f"see `loreloop deploy history {deployment.name}`, then set it anew."
            )
        deployed = Deployed(deployment, name, person, episode_id)
        return Target(arm.base_model, self.base(arm.base_model), arm.revision, deployed)

    def _weights(self, store: Store, key_id: str, path: str, base_name: str) -> Target:
        run_id = path.removeprefix(SCHEME)
        checkpoint = None
        if run_id and "/" not in run_id:
            run = store.read(runs.get, key_id, run_id)
            revision = newest_weights(store, run)
        else:
            checkpoint = self._checkpoint(store, key_id, path)
            run = store.read(runs.of_anyone, checkpoint.run_id)
            revision = Revision(path, str(checkpoints.folder_of(checkpoint)))
        # A base may be named before the weights, and then it is a promise that is checked.
        if base_name and self.base(base_name) != self.base(run.base_model):
            raise BadRequest(f"{path} was trained on {run.base_model!r}, not on {base_name!r}.")
        return Target(run.base_model, self.base(run.base_model), revision, checkpoint=checkpoint)

    def _checkpoint(self, store: Store, key_id: str, path: str) -> CheckpointRow:
        parsed = parse_path(path)
        if parsed.kind is not CheckpointKind.SAMPLER:
            raise BadRequest(
                f"{path} cannot be sampled from; save the weights with save_weights_for_sampler and use that path."
            )
        try:
            return store.read(sharing.readable, (key_id,), parsed)
        except NotFound as error:
            own_paths = saved(store.read(checkpoints.newest, key_id, CheckpointKind.SAMPLER, REACH))
            raise refusal(error.message, path, (), own_paths) from None


def _is_there(arm: Arm) -> bool:
    return arm.revision is None or Path(arm.revision.folder).exists()


def _repository(base: str) -> str:
    """A base's own name where it has the hub's form, else one made of it; of a path, its last part and a digest."""
    if REPOSITORY.fullmatch(base):
        return base
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", base.rstrip("/").rpartition("/")[2]).strip("-.")
    digest = f"-{hashlib.sha256(base.encode()).hexdigest()[:8]}" if "/" in base else ""
    return f"loreloop/{name or 'model'}{digest}"


def newest_weights(store: Store, run: RunRow) -> Revision:
    """The latest that a sampler got from the run: saved under a name, or ephemeral while its session lives."""
    saved = store.read(checkpoints.newest_of_run, run.id, CheckpointKind.SAMPLER)
    ephemeral = store.read(samplers.newest_of_run, run.id)
    # A saved checkpoint of the same moment wins, since it outlives its session.
    if saved is not None and (ephemeral is None or saved.created >= ephemeral.created):
        return Revision(str(saved.path), str(checkpoints.folder_of(saved)))
    if ephemeral is not None:
        return ephemeral.revision
    raise NotFound(
        f"The run {run.id!r} has no weights to sample from yet; call save_weights_for_sampler, or "
        "save_weights_and_get_sampling_client, and ask again."
    )
