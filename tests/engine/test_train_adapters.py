"""Training states in memory and in files: what is spilled, snapshot or checkpointed comes back to the last bit."""

import contextlib
import errno
import os
import re
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.engine.training.model_state import (
    AdapterBank,
    _read_moments,
    new_state,
    read_checkpoint,
    read_state,
    staged,
    write_checkpoint,
)
from loreloop.engine.training.optimizer import adam_step
from loreloop.formats.peft import open_weights, read_lora_spec
from loreloop.formats.tensor_file import write_tensors
from loreloop.model.attention_spec import RopeSpec
from loreloop.model.spec import DecoderSpec
from loreloop.protocol.errors import BadRequest, NotFound, ServerError, Unavailable, UserError
from loreloop.protocol.training import AdamParams, LoraSpec

CPU = torch.device("cpu")
SPEC = DecoderSpec("llama", 64, 32, 2, 2, 1, 16, 48, RopeSpec(1e4), 1e-5, 128, tie_embeddings=True)
VECTORS = ("master", "moment1", "moment2", "grad")


def trained():
    """A state with two steps behind it and a gradient."""
    state = new_state(SPEC, LoraSpec(3, 0), torch.bfloat16, CPU)
    touch(state, 3)
    return state


def touch(state, n_gradients=1):
    """Gathers gradients; all but the last are stepped on."""
    generator = torch.Generator().manual_seed(state.n_steps)
    for i in range(n_gradients):
        state.grad.add_(torch.randn(state.grad.shape, generator=generator))
        state.has_grad = True
        if i < n_gradients - 1:
            adam_step(state, AdamParams(1e-2))


def assert_same(state, other, names=VECTORS):
    assert all(torch.equal(getattr(state, name), getattr(other, name)) for name in names)
    assert torch.equal(state.weights.flat, other.weights.flat)
    assert state.n_steps == other.n_steps
    assert state.layout.lora == other.layout.lora


def new_bank(folder, max_resident=2):
    return AdapterBank(SPEC, torch.bfloat16, CPU, folder / "spill", max_resident)


@pytest.mark.parametrize("n_gradients", [0, 1, 3])
def test_a_state_comes_back_from_its_file(tmp_path, n_gradients):
    state = new_state(SPEC, LoraSpec(5, 7, train_mlp=False), torch.bfloat16, CPU)
    touch(state, n_gradients)
    state.write(tmp_path / "state")
    back = read_state(tmp_path / "state", SPEC, torch.bfloat16, CPU)
    assert_same(back, state)
    assert back.has_grad == state.has_grad


def test_a_state_costs_eighteen_bytes_a_parameter():
    state = new_state(SPEC, LoraSpec(4, 0), torch.bfloat16, CPU)
    n_bytes = sum(getattr(state, name).nbytes for name in VECTORS) + state.weights.flat.nbytes
    assert n_bytes == 18 * state.layout.size


def test_equal_seeds_make_equal_models_that_change_nothing_yet():
    one, same, other = (new_state(SPEC, LoraSpec(4, seed), torch.float32, CPU) for seed in (1, 1, 2))
    assert torch.equal(one.master, same.master)
    assert not torch.equal(one.master, other.master)
    assert not any(b.any() for layer in range(2) for b in one.weights.b(layer, "qkv"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20))
def test_a_full_bank_behaves_like_an_endless_one(tmp_path_factory, history):
    small, large = (new_bank(tmp_path_factory.mktemp("bank"), n) for n in (2, 99))
    for number, trains in history:
        for bank in (small, large):
            model_id = f"run:train:{number}"
            state = bank.get(model_id) if model_id in bank else bank.create(model_id, LoraSpec(1 + number, number))
            touch(state, 2 if trains else 0)
        assert len(small.resident) <= 2
    for number in {number for number, _ in history}:
        assert_same(small.get(f"run:train:{number}"), large.get(f"run:train:{number}"))


def test_the_least_recently_used_model_is_spilled(tmp_path):
    bank = new_bank(tmp_path)
    for name in "ab":
        bank.create(name, LoraSpec(2, 0))
    bank.get("a")
    bank.create("c", LoraSpec(2, 0))
    assert set(bank.resident) == {"a", "c"}
    assert "b" in bank


def test_a_model_that_came_back_or_went_leaves_no_file(tmp_path):
    bank = new_bank(tmp_path)
    for name in "abcd":
        bank.create(name, LoraSpec(2, 0))
    bank.get("a")
    bank.drop("b")
    bank.drop("c")
    assert len(list((tmp_path / "spill").iterdir())) == len(bank.spilled)
    assert not any(name in bank for name in "bc")


def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(NotFound, match="nobody"):
        new_bank(tmp_path).get("nobody")


def test_a_snapshot_holds_what_changed_since_the_last(tmp_path):
    bank = new_bank(tmp_path)
    for name in "abc":  # a goes to disk
        touch(bank.create(name, LoraSpec(2, 0)), 3)
        bank.changed(name)
    first = bank.snapshot(tmp_path / "snapshots", "1")
    touch(bank.get("b"))
    bank.changed("b")
    assert set(first) == {"a", "b", "c"}
    assert set(bank.snapshot(tmp_path / "snapshots", "2")) == {"b"}
    assert bank.snapshot(tmp_path / "snapshots", "3") == {}


def test_a_snapshot_that_fails_leaves_no_files(tmp_path, monkeypatch):
    """Each further try has another name, and would fill the disk that was full."""
    bank, written = new_bank(tmp_path), []
    for name in "ab":
        touch(bank.create(name, LoraSpec(2, 0)), 3)
        bank.changed(name)

    def second_fails(path, *rest, **more):
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_tensors(path, *rest, **more)

    monkeypatch.setattr("loreloop.engine.training.model_state.write_tensors", second_fails)
    with pytest.raises(OSError, match="No space"):
        bank.snapshot(tmp_path / "snapshots", "1")
    assert [*(tmp_path / "snapshots").iterdir()] == []
    monkeypatch.undo()
    assert set(bank.snapshot(tmp_path / "snapshots", "2")) == {"a", "b"}


def test_a_snapshot_whose_names_cannot_be_synced_leaves_no_files(tmp_path, monkeypatch):
    bank = new_bank(tmp_path)
    touch(bank.create("a", LoraSpec(2, 0)), 3)
    bank.changed("a")

    def fails(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("loreloop.engine.training.model_state.sync_names", fails)
    with pytest.raises(OSError, match="Too many open files"):
        bank.snapshot(tmp_path / "snapshots", "1")
    assert [*(tmp_path / "snapshots").iterdir()] == []
    monkeypatch.undo()
    assert set(bank.snapshot(tmp_path / "snapshots", "2")) == {"a"}


def test_a_restored_bank_is_the_one_that_was_snapshot(tmp_path):
    bank = new_bank(tmp_path / "first")
    for name in "abc":
        touch(bank.create(name, LoraSpec(2, 0)), 3)
        bank.changed(name)
    files = bank.snapshot(tmp_path / "snapshots", "1")
    again = new_bank(tmp_path / "second")
    for name, file in files.items():
        again.restore(name, file.path, file.crc32)
    for name in "abc":
        assert_same(again.get(name), bank.get(name))
        assert files[name].path.exists()


def damaged_snapshot(tmp_path, damage):
    """A snapshot with one thing done to it, and a bank that is to take it in."""
    bank = new_bank(tmp_path / "first")
    touch(bank.create("a", LoraSpec(2, 0)), 3)
    bank.changed("a")
    file = bank.snapshot(tmp_path / "snapshots", "1")["a"]
    damage(file.path)
    return file, new_bank(tmp_path / "second")


@pytest.mark.parametrize("known", [True, False], ids=["with a checksum", "from before checksums"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted", "NaN"])
def test_a_damaged_snapshot_is_named_and_not_taken_in(tmp_path, damage, known):
    damages = {"cut": cut, "emptied": emptied, "deleted": Path.unlink, "NaN": put_nan}
    file, bank = damaged_snapshot(tmp_path, damages[damage])
    with pytest.raises(ServerError, match=re.escape(str(file.path))):
        bank.restore("a", file.path, file.crc32 if known else "")
    assert "a" not in bank
    assert not list(bank.folder.iterdir())


def test_a_good_snapshot_that_finds_no_room_is_not_called_damaged(tmp_path, monkeypatch):
    file, bank = damaged_snapshot(tmp_path, lambda path: None)

    def full(source, target):
        Path(target).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            bank.restore("a", file.path, file.crc32)
    assert not list(bank.folder.iterdir())
    bank.restore("a", file.path, file.crc32)
    assert "a" in bank


@pytest.mark.parametrize("known", [True, False], ids=["with a checksum", "from before checksums"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_a_snapshot_that_cannot_be_read_just_now_is_not_called_damaged(tmp_path, monkeypatch, number, known):
    file, bank = damaged_snapshot(tmp_path, lambda path: None)
    crc32 = file.crc32 if known else ""
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refusal(number))
        with pytest.raises(Unavailable, match=os.strerror(number)):
            bank.restore("a", file.path, crc32)
    bank.restore("a", file.path, crc32)
    assert "a" in bank


def test_a_snapshot_that_finds_no_open_file_left_is_not_called_damaged(tmp_path):
    """With the system's own refusal."""
    file, bank = damaged_snapshot(tmp_path, lambda path: None)
    for crc32 in (file.crc32, ""):
        with no_open_files(), pytest.raises(Unavailable, match="Too many open files"):
            bank.restore("a", file.path, crc32)


def refusal(number):
    """A stand-in for `Path.open`."""

    def refused(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    return refused


@contextlib.contextmanager
def no_open_files():
    """The system gives this process no file that it has not opened before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("listed", [True, False], ids=["with checksums", "from before checksums"])
def test_a_checkpoint_that_finds_no_open_file_left_is_not_called_damaged(tmp_path, listed):
    """With the system's own refusal; neither its settings nor its weights nor its moments are."""
    state, other = trained(), new_state(SPEC, LoraSpec(3, 99), torch.bfloat16, CPU)
    write_checkpoint(tmp_path / "c", state, "base")
    if not listed:
        (tmp_path / "c" / "checksums.json").unlink()
    before = other.master.clone()
    readers = [
        lambda: read_checkpoint(tmp_path / "c", other, optimizer=True),
        lambda: read_lora_spec(tmp_path / "c"),
        lambda: _read_moments(tmp_path / "c", state.layout.size, checks=True),
    ]
    if not listed:
        readers.append(lambda: open_weights(tmp_path / "c").__enter__())
    for read in readers:
        with no_open_files(), pytest.raises(Unavailable, match="Too many open files"):
            read()
    assert torch.equal(other.master, before)
    read_checkpoint(tmp_path / "c", other, optimizer=True)
    assert all(torch.equal(getattr(state, name), getattr(other, name)) for name in VECTORS[:3])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOMEM, errno.EIO])
@pytest.mark.parametrize("name", ["checksums.json", "adapter_config.json", "adapter_model", "optimizer"])
def test_no_file_of_a_checkpoint_that_cannot_be_read_just_now_is_called_damaged(tmp_path, monkeypatch, number, name):
    state, other, opened = trained(), new_state(SPEC, LoraSpec(3, 99), torch.bfloat16, CPU), Path.open
    write_checkpoint(tmp_path / "c", state, "base")
    refused = refusal(number)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, *a, **k: (refused if name in path.name else opened)(path, *a, **k))
        with pytest.raises(Unavailable, match=rf"{name}.* cannot be read just now: {os.strerror(number)}"):
            read_checkpoint(tmp_path / "c", other, optimizer=True)
    read_checkpoint(tmp_path / "c", other, optimizer=True)
    assert all(torch.equal(getattr(state, name), getattr(other, name)) for name in VECTORS[:3])


def test_a_spilled_model_that_finds_no_open_file_left_is_kept(tmp_path):
    bank = new_bank(tmp_path, 1)
    bank.create("a", LoraSpec(2, 0))
    bank.create("b", LoraSpec(2, 1))
    del bank.resident["b"]
    with no_open_files(), pytest.raises(Unavailable, match="Too many open files"):
        bank.get("a")
    assert bank.get("a").n_steps == 0


@settings(deadline=None, max_examples=60)
@given(st.integers(0), st.integers(0, 7))
def test_any_flipped_bit_of_a_snapshot_is_found(tmp_path_factory, place, bit):
    file, bank = damaged_snapshot(tmp_path_factory.mktemp("flip"), lambda path: flip_bit(path, place, bit))
    with pytest.raises(ServerError, match="checksum"):
        bank.restore("a", file.path, file.crc32)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    os.truncate(path, 0)


def put_nan(path):
    os.truncate(path, path.stat().st_size - 4)
    with path.open("ab") as file:
        file.write(struct.pack("<f", float("nan")))


def flip_bit(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


def test_a_model_survives_a_spill_that_cannot_be_written(tmp_path):
    bank = new_bank(tmp_path, 1)
    bank.create("a", LoraSpec(2, 0))
    bank.folder.rmdir()
    with pytest.raises(OSError):
        bank.create("b", LoraSpec(2, 0))
    bank.folder.mkdir()
    assert "a" in bank


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_checkpoint_restores_weights_and_if_asked_moments(tmp_path, optimizer):
    state = trained()
    write_checkpoint(tmp_path / "c", state, "base")
    other = new_state(SPEC, LoraSpec(3, 99), torch.bfloat16, CPU)
    touch(other, 3)
    read_checkpoint(tmp_path / "c", other, optimizer=optimizer)
    assert torch.equal(other.master, state.master)
    assert torch.equal(other.weights.flat, state.weights.flat)
    assert not other.has_grad
    assert not other.grad.any()
    assert other.n_steps == (state.n_steps if optimizer else 0)
    assert torch.equal(other.moment2, state.moment2 if optimizer else torch.zeros_like(state.moment2))


@pytest.mark.parametrize("lora", [LoraSpec(4, 0), LoraSpec(3, 0, train_mlp=False)], ids=["rank", "parts"])
def test_a_checkpoint_of_another_shape_is_refused_and_changes_nothing(tmp_path, lora):
    write_checkpoint(tmp_path / "c", trained(), "base")
    state, same = (new_state(SPEC, lora, torch.bfloat16, CPU) for _ in range(2))
    with pytest.raises(BadRequest, match="rank 3 on attn and mlp and unembed"):
        read_checkpoint(tmp_path / "c", state, optimizer=True)
    assert_same(state, same)


def test_an_adapter_without_moments_loads_only_without_them(tmp_path):
    write_checkpoint(tmp_path / "c", trained(), "base")
    (tmp_path / "c" / "optimizer.safetensors").unlink()
    state, same = (new_state(SPEC, LoraSpec(3, 0), torch.bfloat16, CPU) for _ in range(2))
    with pytest.raises(BadRequest, match="without the optimizer"):
        read_checkpoint(tmp_path / "c", state, optimizer=True)
    assert_same(state, same)
    read_checkpoint(tmp_path / "c", state, optimizer=False)


@pytest.mark.parametrize("length", [0, 5, 100, 200])
def test_damaged_moments_are_named_and_change_nothing(tmp_path, length):
    write_checkpoint(tmp_path / "c", trained(), "base")
    with (tmp_path / "c" / "optimizer.safetensors").open("r+b") as file:
        file.truncate(length)
    state, same = (new_state(SPEC, LoraSpec(3, 0), torch.bfloat16, CPU) for _ in range(2))
    with pytest.raises(BadRequest, match=r"optimizer\.safetensors is damaged.*without the optimizer"):
        read_checkpoint(tmp_path / "c", state, optimizer=True)
    (tmp_path / "c" / "checksums.json").unlink()  # as in checkpoints from before there were any
    with pytest.raises(BadRequest, match="optimizer state is damaged"):
        read_checkpoint(tmp_path / "c", state, optimizer=True)
    assert_same(state, same)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"])
@settings(deadline=None, max_examples=40)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_checkpoint_is_found_and_named(tmp_path_factory, name, place, bit):
    folder = tmp_path_factory.mktemp("flip") / "c"
    write_checkpoint(folder, trained(), "base")
    flip_bit(folder / name, place, bit)
    state, same = (new_state(SPEC, LoraSpec(3, 0), torch.bfloat16, CPU) for _ in range(2))
    with pytest.raises(UserError, match=f"{name} is damaged: its checksum was"):
        read_checkpoint(folder, state, optimizer=True)
    assert_same(state, same)


@settings(deadline=None, max_examples=40)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_checksums_themselves_never_lets_other_weights_pass(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("flip") / "c"
    write_checkpoint(folder, trained(), "base")
    flip_bit(folder / "checksums.json", place, bit)
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    state = new_state(SPEC, LoraSpec(3, 0), torch.bfloat16, CPU)
    with pytest.raises(UserError):
        read_checkpoint(folder, state, optimizer=True)


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with staged(tmp_path / "c") as staging:
        (staging / "weights").touch()
        assert not (tmp_path / "c").exists()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["weights"]


def test_a_folder_that_could_not_be_written_leaves_no_trace(tmp_path):
    with pytest.raises(FileNotFoundError), staged(tmp_path / "c") as staging:
        (staging / "missing" / "weights").touch()
    assert list(tmp_path.iterdir()) == []
