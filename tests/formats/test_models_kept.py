"""Adding, verifying and removing models: nothing that a server would refuse gets in, and nothing half made stays."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from loreloop.cli.server import running_server
from loreloop.formats import folders
from loreloop.formats.adding import add
from loreloop.formats.catalog import Catalog
from loreloop.formats.checksums import NOTE, check_weights_unchanged, findings
from loreloop.protocol.errors import BadRequest, ServerError
from tests.model.plain import load, logprobs, tokens
from tests.tiny import make_tiny_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def source(made, tmp_path):
    return shutil.copytree(made, tmp_path / "tiny")


def loreloop(*arguments, data):
    command = [sys.executable, "-m", "loreloop.cli", *map(str, arguments), "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def change(folder, **tensors):
    weights = load_file(folder / WEIGHTS) | tensors
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / WEIGHTS)


def not_a_number(folder):
    norm = load_file(folder / WEIGHTS)["model.norm.weight"]
    norm[3] = float("nan")
    change(folder, **{"model.norm.weight": norm})


def pickles_alone(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


DAMAGE = {
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 50_000), WEIGHTS),
    "cut in its head": (lambda f: os.truncate(f / WEIGHTS, 20), WEIGHTS),
    "a tensor missing": (lambda f: change(f, **{"model.norm.weight": None}), "model.norm.weight"),
    "a tensor too many": (lambda f: change(f, **{"model.extra.weight": torch.ones(2)}), "model.extra.weight"),
    "a tensor of another shape": (lambda f: change(f, **{"model.norm.weight": torch.ones(3)}), "model.norm.weight"),
    "not a number": (not_a_number, "model.norm.weight"),
    "pickles alone": (pickles_alone, "pytorch_model.bin"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    "a template that is no text": (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "chat_template.jinja"),
    "broken defaults": (lambda f: (f / "generation_config.json").write_text("["), "generation_config.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_a_server_would_refuse_is_not_added(source, tmp_path, name):
    damage, said = DAMAGE[name]
    damage(source)
    done = loreloop("models", "add", source, data=tmp_path / "data")
    assert done.returncode == 1
    assert said in done.stderr
    assert str(source) in done.stderr
    assert ".adding" not in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_strays_are_left_behind(source, tmp_path):
    wrong = {name: tensor + 1 for name, tensor in load_file(source / WEIGHTS).items()}
    for stray in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "original/model.pth"):
        (source / stray).parent.mkdir(exist_ok=True)
        save_file(wrong, source / stray)
    entry = add(Catalog(tmp_path / "data"), str(source))
    assert {file.name for file in entry.folder.iterdir()} >= {WEIGHTS, "config.json", "tokenizer.json", NOTE}
    assert not [file for file in entry.folder.rglob("*") if file.suffix in (".bin", ".pth")]
    assert [file.name for file in entry.folder.glob("*.safetensors")] == [WEIGHTS]
    sequence = tokens(9)
    assert torch.equal(logprobs(load(entry.folder), [sequence]), logprobs(load(source), [sequence]))


def test_links_leave_files_where_they_are(source, tmp_path):
    entry = add(Catalog(tmp_path / "data"), str(source), link=True)
    assert (entry.folder / WEIGHTS).resolve() == source / WEIGHTS
    Catalog(tmp_path / "data").remove(source.name)
    assert (source / WEIGHTS).exists()
    assert list((tmp_path / "data" / "models").iterdir()) == []
    with pytest.raises(BadRequest, match="--link"):
        add(Catalog(tmp_path / "data"), "smollm2-135m", link=True)


def test_a_template_of_choice_is_the_only_one(source, tmp_path):
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    (tmp_path / "mine.jinja").write_text("mine")
    entry = add(Catalog(tmp_path / "data"), str(source), link=True, template=tmp_path / "mine.jinja")
    assert (entry.folder / "chat_template.jinja").read_text() == "mine"
    assert not (entry.folder / "additional_chat_templates").exists()
    assert (source / "additional_chat_templates" / "tool_use.jinja").exists()


def test_verify_tells_what_has_changed(source, tmp_path):
    entry = add(Catalog(tmp_path / "data"), str(source))
    assert {one.state for one in findings(entry.folder)} == {"ok"}
    check_weights_unchanged(entry.folder)
    with (entry.folder / WEIGHTS).open("r+b") as file:
        file.seek(20_000)
        byte = file.read(1)
        file.seek(20_000)
        file.write(bytes([byte[0] ^ 1]))
    (entry.folder / "generation_config.json").unlink()
    done = loreloop("models", "verify", "--json", data=tmp_path / "data")
    states = {row["file"]: row["state"] for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert (states[WEIGHTS], states["generation_config.json"], states["config.json"]) == ("changed", "missing", "ok")
    with pytest.raises(BadRequest, match=r"model\.safetensors is not the file that was added"):
        check_weights_unchanged(entry.folder)


def test_a_server_verifies_weights_when_asked(source, tmp_path):
    entry = add(Catalog(tmp_path / "data"), str(source))
    change(entry.folder, **{"model.norm.weight": torch.ones(64)})
    flags = ("--model", "tiny", "--port", "0", "--verify-weights")
    done = loreloop("serve", *flags, data=tmp_path / "data")
    assert done.returncode == 1
    assert "is not the file that was added" in done.stderr


def test_a_model_is_removed_unless_a_server_serves_it(source, tmp_path):
    data = tmp_path / "data"
    add(Catalog(data), str(source))
    with running_server(str(data), ["--model", "tiny", "--threads", "1"]) as running:
        done = loreloop("models", "remove", "tiny", data=data)
        assert (done.returncode, running.url in done.stderr) == (1, True)
    done = loreloop("models", "remove", "tiny", data=data)
    assert done.returncode == 0, done.stderr
    assert list((data / "models").iterdir()) == []
    assert loreloop("models", "remove", "tiny", data=data).returncode == 1


def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.shutil, "copyfile", full)
    with pytest.raises(ServerError, match="No space left"):
        add(Catalog(tmp_path / "data"), str(source))
    assert list((tmp_path / "data" / "models").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_midway_leaves_no_half_model(source, tmp_path, number):
    """What a killed one leaves has no name, and the next one takes it away."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from loreloop.formats.adding import add\n"
        "from loreloop.formats.catalog import Catalog\n"
        "def wait(folder): print('there', flush=True); time.sleep(60)\n"
        "add(Catalog(Path(sys.argv[2]), wait), sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        time.sleep(0.1)
        process.send_signal(number)
        process.wait(timeout=30)
    catalog = Catalog(tmp_path / "data")
    assert catalog.list() == []
    assert len(list(catalog.folder.iterdir())) == (number == signal.SIGKILL)
    add(catalog, str(source))
    assert [path.name for path in catalog.folder.iterdir()] == ["tiny"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["serve --port 0", "models add smollm2-135m", "memory eval --quick"])
def test_an_end_amid_a_download_leaves_nothing(tmp_path, command, number):
    """The default model's first download, from an index that never answers."""
    data, scratch = tmp_path / "data", tmp_path / "scratch"
    scratch.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        pip = {"PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple", "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "loreloop.cli", *command.split(), "--data", str(data)],
            env=os.environ | pip | {"TMPDIR": str(scratch)},
            stderr=subprocess.PIPE,
            text=True,
        )
        with index.accept()[0]:
            downloading = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert [line for line in errors.splitlines() if line and "Downloading" not in line] in ([], ["Stopped."])
    assert downloading
    # They end with their parent, but a busy machine needs a moment to take them away.
    assert psutil.wait_procs(downloading, timeout=10)[1] == []
    assert list(scratch.iterdir()) == list((data / "models").iterdir()) == []


def test_a_model_with_a_damaged_configuration_is_removed_as_others_are(source, tmp_path):
    add(Catalog(tmp_path / "data"), str(source))
    folder = tmp_path / "data" / "models" / "tiny"
    (folder / "config.json").write_text("{")
    done = loreloop("models", "remove", "tiny", data=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
