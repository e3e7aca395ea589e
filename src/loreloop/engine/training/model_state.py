"""What training changes: the state of every model, held in flat vectors, and the bank that keeps the live ones.

A model costs 18 bytes a parameter in memory (fp32 master, two moments and gradient, one copy in a two-byte compute
dtype). The bank holds a few in memory; the others wait in files and come back when asked for. The same files are the
snapshots that a restarted engine begins from.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

from loreloop.engine.adapter_reading import read_once, read_share
from loreloop.engine.aside import Aside
from loreloop.engine.contract import Pause, no_pause
from loreloop.engine.training.staging import staged
from loreloop.formats.flat_vectors import fill_vector, write_vectors
from loreloop.formats.peft import WEIGHTS_FILE, write_adapter_stream
from loreloop.formats.tensor_file import check_finite, open_tensors, write_tensors
from loreloop.model.lora import AdapterView, outline
from loreloop.model.spec import DecoderSpec
from loreloop.parallel.adapter_share import AdapterShare
from loreloop.parallel.place import ALONE, RETRY_SECONDS, Place
from loreloop.protocol.checksums import OPTIMIZER_FILE, FileSum, check_files, sum_of, write_sums
from loreloop.protocol.errors import (
    BadRequest,
    Gone,
    LoreloopError,
    NotFound,
    OutOfService,
    ServerError,
    outcome_of,
    reading_trouble,
)
from loreloop.protocol.paths import file_name
from loreloop.protocol.syncing import sync_names, sync_path
from loreloop.protocol.training import LoraSpec, SavedResult

LOG = logging.getLogger("loreloop.engine")
VECTORS = ("master", "moment1", "moment2", "grad")
MOMENTS = ("moment1", "moment2")
T = TypeVar("T")


class ModelState:
    """One model: `master`, `moment1`, `moment2`, `grad` (fp32) and `weights` (compute dtype), all (size,)."""

    def __init__(self, share: AdapterShare, dtype: torch.dtype, device: torch.device) -> None:
        self.share, layout = share, share.layout
        self.layout = layout
        # One vector of each kind rather than a tensor a matrix: the optimizer, snapshots and copies are then single
        # passes.
        self.master, self.moment1, self.moment2, self.grad = (torch.zeros(layout.size, device=device) for _ in VECTORS)
        self.weights = AdapterView(layout, torch.zeros(layout.size, dtype=dtype, device=device))
        self.gradient = AdapterView(layout, self.grad)
        self.n_steps = 0
        self.has_grad = False
        self._published = False

    def own_weights(self) -> None:
        """Leaves a published compute copy to the samples that may still read it, and goes on with one like it. Behind
        that `refresh_weights` needs no memory, for want of which it could fail amid a change."""
        if self._published:
            self.weights, self._published = AdapterView(self.layout, self.weights.flat.clone()), False

    def refresh_weights(self) -> None:
        """Brings the compute copy up to date with the master."""
        self.own_weights()
        self.weights.flat.copy_(self.master)

    def publish(self) -> AdapterView:
        """The compute copy, never to change again: the next `refresh_weights` fills another."""
        self._published = True
        return self.weights

    def clear_grad(self) -> None:
        """Drops the gathered gradients, as after a step."""
        self.grad.zero_()
        self.has_grad = False

    def copied_grad(self) -> Tensor | None:
        """What has been gathered so far, for `put_grad_back`; None for nothing, which costs nothing to keep."""
        return self.grad.clone() if self.has_grad else None

    def put_grad_back(self, grad: Tensor | None) -> None:
        """Undoes what was added since `copied_grad`: what has failed must not count, and what had succeeded must."""
        if grad is None:
            self.clear_grad()
        else:
            self.grad.copy_(grad)

    def write(self, path: Path, *, durable: bool = True) -> FileSum:
        """The state of this process in one file; vectors that are zero are left out."""
        return write_tensors(path, self._present(), self._metadata(), durable=durable)

    def write_whole(self, path: Path) -> FileSum:
        """The state of all processes in one file, which the first of them writes."""
        share = self.share
        vectors = {
            name: share.whole_gradients(mine) if name == "grad" else share.wholes(mine)
            for name, mine in self._present().items()
        }
        metadata = self._metadata()
        return written(
            share, list(vectors.values()), lambda: write_vectors(path, share.whole_layout, vectors, metadata), FileSum
        )

    def _present(self) -> dict[str, Tensor]:
        # Before the first step the moments are zero, and the file is a third of its later size.
        present = {"master": self.master}
        if self.n_steps:
            present |= {"moment1": self.moment1, "moment2": self.moment2}
        if self.has_grad:
            present["grad"] = self.grad
        return present

    def _metadata(self) -> dict[str, str]:
        lora = msgspec.json.encode(self.layout.lora).decode()
        return {"lora": lora, "n_steps": str(self.n_steps), "has_grad": str(int(self.has_grad))}


def written(share: AdapterShare, streams: Sequence[Iterator[AdapterView]], write: Callable[[], T], kind: type[T]) -> T:
    """What `write` gives on the first process, where it takes whole adapters from the streams; the others send what
    these are made of, until it has failed. `kind` as of `Place.by_first`; nothing but files may be changed by it, so
    that whatever fails there ends the request and not the engine: OutOfService where no error of ours says it."""

    def all_of_it() -> T:
        given = write()
        # What it did not want is sent all the same.
        _go_through(streams)
        return given

    def work() -> T:
        given = outcome_of(all_of_it)
        if isinstance(given, Exception) and share.place.n_ranks > 1 and not isinstance(given, LoreloopError | OSError):
            LOG.error("an adapter could not be written", exc_info=given)
            why = f"{type(given).__name__}: {given}"
            raise OutOfService(f"The adapter could not be put together or written ({why}); see the log.", RETRY_SECONDS)
        if isinstance(given, Exception):
            raise given
        return given

    if not share.place.is_first:
        _go_through(streams)
    return share.place.by_first(work, kind)


def _go_through(streams: Sequence[Iterator[AdapterView]]) -> None:
    for stream in streams:
        deque(stream, maxlen=0)


def read_state(
    path: Path,
    spec: DecoderSpec,
    dtype: torch.dtype,
    device: torch.device,
    place: Place = ALONE,
    *,
    is_whole: bool = False,
) -> ModelState:
    """The state that `ModelState.write` wrote for this process, or with `is_whole` that of all."""
    with open_tensors(path) as file:
        metadata = file.metadata()
        share = AdapterShare(spec, msgspec.json.decode(metadata["lora"], type=LoraSpec), place)
        state = ModelState(share, dtype, device)
        for name in file.keys():  # noqa: SIM118 (not a dict)
            mine = _vector(state, name)
            if is_whole:
                fill_vector(file, name, share.whole_layout, AdapterView(share.layout, mine), share.region)
            else:
                mine.copy_(file.get_tensor(name))
        if is_whole and metadata["has_grad"] == "1":
            share.keep_part(state.grad)
    # Set last: a file that turns out damaged raises before it, and the half read state is never used.
    state.n_steps, state.has_grad = int(metadata["n_steps"]), metadata["has_grad"] == "1"
    state.refresh_weights()
    return state


def new_state(
    spec: DecoderSpec, lora: LoraSpec, dtype: torch.dtype, device: torch.device, place: Place = ALONE
) -> ModelState:
    """A fresh model of this shape: A from the seed, B zero, no steps taken."""
    share = AdapterShare(spec, lora, place)
    state = ModelState(share, dtype, device)
    share.draw(state.master)
    state.refresh_weights()
    return state


def write_checkpoint(folder: Path, state: ModelState, base_model: str) -> SavedResult:
    """A PEFT folder of the master weights plus the optimizer's moments, with the list of their checksums."""
    share, whole = state.share, state.share.whole_layout
    master = share.wholes(state.master)
    moments = {name: share.wholes(_vector(state, name)) for name in MOMENTS}

    def write() -> SavedResult:
        with staged(folder) as staging:
            sums = write_adapter_stream(staging, outline(whole, state.master.dtype), master, base_model)
            steps = {"n_steps": str(state.n_steps)}
            sums[OPTIMIZER_FILE] = write_vectors(staging / OPTIMIZER_FILE, whole, moments, steps)
            sums_crc32 = write_sums(staging, sums)
        return SavedResult(sums[WEIGHTS_FILE].n_bytes + sums[OPTIMIZER_FILE].n_bytes, sums_crc32)

    return written(share, [master, *moments.values()], write, SavedResult)


def write_sampler(
    folder: Path, share: AdapterShare, mine: Tensor, base_model: str, *, durable: bool = True
) -> SavedResult:
    """A PEFT folder of the adapter of which `mine` are this process's numbers, to sample from, with the list of its
    checksums."""
    whole = share.wholes(mine)

    def write() -> SavedResult:
        with staged(folder, durable=durable) as staging:
            outlines = outline(share.whole_layout, mine.dtype)
            sums = write_adapter_stream(staging, outlines, whole, base_model, durable=durable)
            sums_crc32 = write_sums(staging, sums)
        return SavedResult(sums[WEIGHTS_FILE].n_bytes, sums_crc32)

    return written(share, [whole], write, SavedResult)


def read_checkpoint(folder: Path, state: ModelState, *, optimizer: bool) -> None:
    """Fills `state` from a checkpoint of the same shape; without `optimizer` the moments begin anew.

    Nothing is changed unless the whole checkpoint could be read.
    """
    share, own_lora = state.share, state.layout.lora

    def check(lora: LoraSpec) -> None:
        # The seed says how an adapter began, and any shape can be loaded over another beginning.
        if msgspec.structs.replace(lora, seed=own_lora.seed) != own_lora:
            raise BadRequest(
                f"The checkpoint has {_describe(lora)}, the model {_describe(own_lora)}; they must be equal."
            )

    # All that may fail is read before the first number of the state is changed, on this rank or on another.
    view = read_share(folder, share.share.spec, torch.float32, share.place, check)[1]
    moments = read_once(share.place, partial(_read_moments, folder, share)) if optimizer else None
    state.own_weights()
    state.master.copy_(view.flat)
    state.moment1.zero_()
    state.moment2.zero_()
    state.n_steps = 0
    if moments:
        state.moment1.copy_(moments[1]["moment1"])
        state.moment2.copy_(moments[1]["moment2"])
        state.n_steps = moments[0]
    state.clear_grad()
    state.refresh_weights()


def _read_moments(folder: Path, share: AdapterShare, *, checks: bool) -> tuple[int, dict[str, Tensor]]:
    """Steps, and this process's numbers of the moments. Where it `checks`, the whole file is compared with its
    checksum."""
    try:
        if checks:
            check_files(folder, (OPTIMIZER_FILE,))
        moments = {name: torch.empty(share.layout.size) for name in MOMENTS}
        with open_tensors(folder / OPTIMIZER_FILE) as file:
            for name, mine in moments.items():
                fill_vector(file, name, share.whole_layout, AdapterView(share.layout, mine), share.region)
            return int(file.metadata()["n_steps"]), moments
    except OSError:
        raise BadRequest("This checkpoint holds no optimizer state; load it without the optimizer.") from None
    except Gone as error:
        raise BadRequest(f"{error.message} Or load this checkpoint without the optimizer.") from None
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise BadRequest(f"This checkpoint's optimizer state is damaged ({error}); load it without.") from None


def _describe(lora: LoraSpec) -> str:
    parts = [name for name in ("attn", "mlp", "unembed") if getattr(lora, f"train_{name}")]
    return f"rank {lora.rank} on {' and '.join(parts)} (experts: {lora.experts})"


def _vector(state: ModelState, name: str) -> Tensor:
    return {"master": state.master, "moment1": state.moment1, "moment2": state.moment2, "grad": state.grad}[name]


class SnapshotFile(NamedTuple):
    """One model's snapshot and the checksum that `restore` compares it with."""

    path: Path
    crc32: str


class AdapterBank:
    """All live models of an engine, `max_resident` of them in memory, the least recently used ones in files."""

    def __init__(
        self,
        spec: DecoderSpec,
        dtype: torch.dtype,
        device: torch.device,
        folder: Path,
        max_resident: int,
        place: Place = ALONE,
        *,
        aside: Aside | None = None,
    ) -> None:
        self.spec, self.dtype, self.device, self.folder, self.place = spec, dtype, device, folder, place
        self.max_resident, self.aside = max_resident, aside or Aside(alone=place.n_ranks == 1)
        self.resident: OrderedDict[str, ModelState] = OrderedDict()
        self.spilled: dict[str, Path] = {}
        self.unsaved: set[str] = set()  # changed since the last snapshot
        shutil.rmtree(folder, ignore_errors=True)  # a former life's spills; its snapshots lie elsewhere
        folder.mkdir(parents=True)

    def __contains__(self, model_id: str) -> bool:
        return model_id in self.resident or model_id in self.spilled

    def create(self, model_id: str, lora: LoraSpec, pause: Pause = no_pause) -> ModelState:
        """A fresh model, resident; another one may move to its file for it."""
        self._make_room(pause)
        make = partial(new_state, self.spec, lora, self.dtype, self.device, self.place)
        return self._keep(model_id, self.aside.done(make, pause))

    def get(self, model_id: str, pause: Pause = no_pause) -> ModelState:
        """The state of a live model, brought back from its file if need be."""
        state = self.resident.get(model_id)
        if state is None:
            path = self.spilled.get(model_id)
            if path is None:
                raise NotFound(f"The model {model_id} is not live; its session has ended. Load one of its checkpoints.")
            self._make_room(pause)
            read = partial(read_state, path, self.spec, self.dtype, self.device, self.place)
            state = self._keep(model_id, self.aside.done(lambda: self.place.agreed(read), pause))
            self.spilled.pop(model_id).unlink()
        self.resident.move_to_end(model_id)
        return state

    def restore(self, model_id: str, file: Path, crc32: str = "") -> None:
        """Takes a model in from a snapshot.

        ServerError, naming the file, where it is not what was written: it has another checksum, or (written before
        there were checksums) holds NaN, or where it is missing. OutOfService where it cannot be read just now, and
        OSError where the copy cannot be made: without room, rights, memory, open files or its disk the snapshot is as
        good as ever, and the model must not be given up for it.
        """
        self.drop(model_id)
        self.place.agreed(lambda: self._take_in(model_id, file, crc32))
        self.spilled[model_id] = self._path(model_id)

    def _take_in(self, model_id: str, file: Path, crc32: str) -> None:
        try:
            found = sum_of(file).crc32
            if crc32 and found != crc32:
                raise ServerError(f"its snapshot {file} is damaged: its checksum was {crc32} and is {found}")
            if not crc32:
                check_finite(file)
        except (OSError, SafetensorError) as error:
            raise reading_trouble(error, file) or ServerError(
                f"its snapshot {file} is gone or damaged ({error})"
            ) from None
        path = self._path(model_id)
        try:
            if self.place.n_ranks == 1:
                shutil.copyfile(file, path)
            else:  # a snapshot holds what all ranks have, and this file only what is this rank's
                state = read_state(file, self.spec, self.dtype, self.device, self.place, is_whole=True)
                state.write(path, durable=False)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def drop(self, model_id: str) -> None:
        """Forgets a model with its spilled file; one that is not there is no error."""
        self.resident.pop(model_id, None)
        self.unsaved.discard(model_id)
        if path := self.spilled.pop(model_id, None):
            path.unlink()

    def changed(self, model_id: str) -> None:
        """Marks a model for the next snapshot. Must be called after every change, or a restart would lose it."""
        self.unsaved.add(model_id)

    def snapshot(self, folder: Path, suffix: str, pause: Pause = no_pause) -> dict[str, SnapshotFile]:
        """Writes every model that changed since the last time; gives its file by model."""
        self.place.agreed(lambda: folder.mkdir(parents=True, exist_ok=True))
        files: dict[str, SnapshotFile] = {}
        with contextlib.ExitStack() as undo:
            # In a fixed order, so that the same snapshot is written in the same order whatever happened before.
            for model_id in sorted(self.unsaved):
                path = folder / f"{file_name(model_id)}.{suffix}.safetensors"
                # Nobody would hear of it where a later one fails, and the next try writes it under another name.
                undo.callback(path.unlink, missing_ok=True)
                write = partial(self._written, model_id, path)
                files[model_id] = SnapshotFile(path, self.aside.done(write, pause).crc32)
            if files:
                # Their rows let the operations go that made these states.
                self.place.by_first(lambda: sync_names(folder / "any", 3), type(None))
            undo.pop_all()
        # Only when all are written: after an error the next snapshot tries every one of them again.
        self.unsaved.clear()
        return files

    def _written(self, model_id: str, path: Path) -> FileSum:
        if self.place.n_ranks > 1:
            return self.get(model_id).write_whole(path)
        if model_id in self.resident:
            return self.resident[model_id].write(path)
        # A spilled state need not come back to memory; its file has the very form of a snapshot.
        shutil.copyfile(self.spilled[model_id], path)
        sync_path(path)  # the others are synced where they are written
        return sum_of(path)

    def _make_room(self, pause: Pause) -> None:
        while len(self.resident) >= self.max_resident:
            model_id, state = next(iter(self.resident.items()))
            path = self._path(model_id)
            # Written completely before the memory is given up.
            write = partial(state.write, path, durable=False)  # of no use after this process
            self.aside.done(partial(self.place.agreed, write), pause)
            self.spilled[model_id] = path
            del self.resident[model_id]

    def _keep(self, model_id: str, state: ModelState) -> ModelState:
        self.resident[model_id] = state
        return state

    def _path(self, model_id: str) -> Path:
        return self.folder / f"{file_name(model_id)}.safetensors"
