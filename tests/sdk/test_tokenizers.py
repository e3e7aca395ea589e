"""A client on another machine: tokenizers and configurations come from the server, which keeps its disk to itself."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from loreloop.cli.server import RunningServer, running_server
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
ALIAS = "Qwen/Qwen3-8B-Base"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One model by a name and an alias, another by the path of its folder."""
    data: Path = tmp_path_factory.mktemp("data")
    folder = make_tiny_model(data / "models" / "tiny", "qwen3")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (folder / "secret.json").write_text("{}")
    other = make_tiny_model(tmp_path_factory.mktemp("elsewhere") / "other model", vocab_size=300)
    arguments = ["--model", "tiny", "--model", str(other), "--alias", f"{ALIAS}=tiny", "--precision", "fp32"]
    with running_server(str(data), [*arguments, "--threads", "1"]) as running:
        yield running


def told(server: RunningServer, home: Path, code: str) -> str:
    """What a client says that knows nothing but the address, has an empty cache and does not see the server's disk."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TINKER_"))} | {
        "TINKER_BASE_URL": server.url,
        "TINKER_API_KEY": server.key,
        "TINKER_TELEMETRY": "0",
        "HF_ENDPOINT": f"{server.url}/hf",
        "HF_HOME": str(home),
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_get_tokenizer_of_every_client_is_the_served_model_s(server: RunningServer, tmp_path: Path) -> None:
    code = f"""
import tinker
service = tinker.ServiceClient()
def show(client):
    print(client.get_tokenizer().encode("the quick brown fox 12"))
for name in ("tiny", "{ALIAS}"):
    training = service.create_lora_training_client(name, rank=2).result()
    show(training)
    show(service.create_sampling_client(base_model=name).result())
    path = training.save_weights_for_sampler("a").result().path
    show(service.create_sampling_client(model_path=path).result())
    show(training.save_weights_and_get_sampling_client().result())
"""
    expected = AutoTokenizer.from_pretrained(server.data / "models" / "tiny").encode("the quick brown fox 12")
    assert told(server, tmp_path, code).splitlines() == [str(expected)] * 8


def test_a_model_named_by_its_folder_has_a_name_for_its_tokenizer(server: RunningServer, tmp_path: Path) -> None:
    (folder,) = [
        name["model_name"]
        for name in httpx.get(f"{server.url}/api/v1/get_server_capabilities", headers={"x-api-key": server.key}).json()[
            "supported_models"
        ]
        if name["model_name"].startswith("/")
    ]
    code = f"""
import tinker
service = tinker.ServiceClient()
training = service.create_lora_training_client({folder!r}, rank=2).result()
print(training.get_info().model_data.tokenizer_id.startswith("loreloop/other-model-"))
print(training.get_tokenizer().encode("fox"))
path = training.save_weights_for_sampler("a").result().path
print(service.create_sampling_client(model_path=path).result().get_tokenizer().encode("fox"))
"""
    ids = str(AutoTokenizer.from_pretrained(folder).encode("fox"))
    assert told(server, tmp_path, code).splitlines() == ["True", ids, ids]


def test_hub_clients_get_configuration_templates_and_no_weights(server: RunningServer, tmp_path: Path) -> None:
    code = """
from huggingface_hub import HfApi, file_exists, snapshot_download
from transformers import AutoConfig, AutoTokenizer
import os
print(AutoConfig.from_pretrained("tiny").model_type)
print(sorted(AutoTokenizer.from_pretrained("loreloop/tiny").get_chat_template(tools=[{}], chat_template="tool_use")))
print(file_exists("tiny", "tokenizer.json"), file_exists("tiny", "model.safetensors"))
folder = snapshot_download("Qwen/Qwen3-8B-Base")
print(sorted(os.listdir(folder)))
print(HfApi().model_info("tiny").sha == os.path.basename(folder))
"""
    lines = told(server, tmp_path, code).splitlines()
    assert lines[0] == "qwen3"
    assert lines[1] == str(sorted("tools"))
    assert lines[2] == "True False"
    assert "model.safetensors" not in lines[3]
    assert "secret.json" not in lines[3]
    assert "tokenizer.json" in lines[3]
    assert lines[4] == "True"


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("tiny/resolve/main/model.safetensors", "EntryNotFound"),
        ("tiny/resolve/main/secret.json", "EntryNotFound"),
        ("tiny/resolve/main/%2e%2e/%2e%2e/loreloop.db", "EntryNotFound"),
        ("tiny/resolve/main//etc/passwd", "EntryNotFound"),
        ("tiny/resolve/other/config.json", "RevisionNotFound"),
        ("gpt2/resolve/main/config.json", "RepoNotFound"),
        ("api/models/gpt2", "RepoNotFound"),
        ("api/models/tiny/tree/main/nothing", "EntryNotFound"),
    ],
)
def test_nothing_else_leaves_the_folder(server: RunningServer, place: str, code: str) -> None:
    answer = httpx.get(f"{server.url}/hf/{place}")
    assert answer.status_code == 404
    assert answer.headers.get("x-error-code", "") == code


def test_files_are_told_apart_by_their_contents(server: RunningServer) -> None:
    head = httpx.head(f"{server.url}/hf/tiny/resolve/main/config.json")
    whole = httpx.get(f"{server.url}/hf/tiny/resolve/{head.headers['x-repo-commit']}/config.json")
    assert whole.content == (server.data / "models" / "tiny" / "config.json").read_bytes()
    assert head.headers["etag"] == whole.headers["etag"]
    assert int(head.headers["content-length"]) == len(whole.content)
    other = httpx.head(f"{server.url}/hf/tiny/resolve/main/tokenizer.json")
    assert other.headers["etag"] != head.headers["etag"]
