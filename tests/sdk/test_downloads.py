"""Weights travel: what the SDK downloads, peft loads, and its log-probs are those of the server."""

import datetime
import hmac
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import httpx
import pyrage
import pytest
import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loreloop.cli.server import RunningServer
from loreloop.store.files import SECRET, read_secret
from tests.sdk.clients import IDS, fit, made_key, prompt, trainer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(server: RunningServer) -> tinker.TrainingClient:
    """With an adapter on the unembedding, whose embedding is tied."""
    client = trainer(server)
    fit(client, 3)
    return client


def assert_same_in_peft(client: tinker.TrainingClient, base: Path, folder: Path) -> None:
    sampler = client.save_weights_and_get_sampling_client().result()
    own = torch.tensor(sampler.compute_logprobs(prompt(IDS)).result()[1:])
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(bare, folder)
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, :-1]
    theirs = logits.log_softmax(-1)[range(len(IDS) - 1), IDS[1:]]
    assert (own - theirs).abs().max() <= 1e-4


def fetched(urls: dict[str, str], folder: Path) -> Path:
    folder.mkdir()
    for name, url in urls.items():
        urllib.request.urlretrieve(url, folder / name)
    return folder


def test_external_weights_come_by_signed_addresses_and_peft_loads_them(
    server: RunningServer, tiny_folder: Path, trained: tinker.TrainingClient, tmp_path: Path
) -> None:
    path = trained.save_weights_external("out").result().path
    assert path.endswith("/external_weights/out")
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    signed = rest.get_external_weights_urls(path).result()
    assert datetime.timedelta(minutes=30) < signed.expires - datetime.datetime.now(datetime.UTC)
    assert_same_in_peft(trained, tiny_folder, fetched(signed.urls, tmp_path / "out"))
    listed = {found.tinker_path: found for found in rest.list_user_checkpoints().result().checkpoints}
    assert listed[path].checkpoint_type == "external"
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert httpx.get(signed.urls["adapter_config.json"]).status_code == 404


def test_checkpoints_on_disk_are_loaded_by_peft(
    server: RunningServer, tiny_folder: Path, trained: tinker.TrainingClient
) -> None:
    for kind, save in {"weights": trained.save_state, "sampler_weights": trained.save_weights_for_sampler}.items():
        save("disk").result()
        run = trained.model_id.replace(":", "_")
        assert_same_in_peft(trained, tiny_folder, server.data / "checkpoints" / run / kind / "disk")


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_an_archive_of_any_checkpoint_is_a_peft_folder(
    server: RunningServer, tiny_folder: Path, trained: tinker.TrainingClient, tmp_path: Path, kind: str
) -> None:
    save = trained.save_state if kind == "weights" else trained.save_weights_for_sampler
    save("archived").result()
    place = f"{server.url}/api/v1/training_runs/{trained.model_id}/checkpoints/{kind}/archived/archive"
    redirect = httpx.get(place, headers={"x-api-key": server.key})
    assert redirect.status_code == 302
    assert redirect.headers["expires"].endswith("GMT")
    with tarfile.open(fileobj=io.BytesIO(urllib.request.urlopen(redirect.headers["location"]).read())) as tar:
        assert tar.getnames() == ["adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"]
        tar.extractall(tmp_path, filter="data")
    assert_same_in_peft(trained, tiny_folder, tmp_path)


def test_addresses_are_for_one_file_and_one_hour(server: RunningServer, trained: tinker.TrainingClient) -> None:
    path = trained.save_weights_external("signed").result().path
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    url = rest.get_external_weights_urls(path).result().urls["adapter_config.json"]
    assert httpx.get(url).status_code == 200
    expires = url.partition("expires=")[2].partition("&")[0]
    for other in (
        url.replace("adapter_config.json", "adapter_model.safetensors"),
        url.replace("/signed/", "/other/"),
        url.replace("external_weights", "weights"),
        url.replace(expires, str(int(expires) + 1)),
        url.replace("signature=", "signature=0"),
        url.partition("?")[0],
        url.partition("?")[0] + "?signature=%C3%A9",
    ):
        assert httpx.get(other).status_code == 403, other


def test_an_address_that_has_expired_is_refused(server: RunningServer, trained: tinker.TrainingClient) -> None:
    """As this server itself would have signed it an hour ago."""
    path = trained.save_weights_external("late").result().path
    place = path.removeprefix("tinker://")
    secret, expired = read_secret(server.data / SECRET), int(time.time()) - 1
    answers = []
    for expires in (expired, expired + 60):
        told = f"download {path} adapter_config.json {expires}".encode()
        query = f"expires={expires}&signature={hmac.new(secret, told, 'sha256').hexdigest()}"
        answers.append(httpx.get(f"{server.url}/api/v1/downloads/{place}/adapter_config.json?{query}"))
    assert [answer.status_code for answer in answers] == [403, 200]
    assert "expired" in answers[0].text


def test_a_name_is_taken_once(trained: tinker.TrainingClient) -> None:
    trained.save_weights_external("once").result()
    with pytest.raises(tinker.BadRequestError, match=r"exists already; .*delete it first"):
        trained.save_weights_external("once").result()


def test_what_is_damaged_or_gone_is_not_given_out(server: RunningServer, trained: tinker.TrainingClient) -> None:
    for damage, named in {"flip": "is damaged", "delete": "does not hold", "remove": "files of .* are gone"}.items():
        saved = trained.save_weights_external(damage).result().path
        rest = tinker.RestClient(base_url=server.url, api_key=server.key)
        url = rest.get_external_weights_urls(saved).result().urls["adapter_model.safetensors"]
        place = f"{server.url}/api/v1/training_runs/{saved.removeprefix('tinker://').replace('/', '/checkpoints/', 1)}"
        whole = httpx.get(f"{place}/archive", headers={"x-api-key": server.key}).headers["location"]
        folder = server.data / "checkpoints" / trained.model_id.replace(":", "_") / "external_weights" / damage
        weights = folder / "adapter_model.safetensors"
        if damage == "flip":
            content = bytearray(weights.read_bytes())
            content[-9] ^= 1
            weights.write_bytes(content)
        elif damage == "delete":
            weights.unlink()
        else:
            shutil.rmtree(folder)
        for address in (url, whole):
            answer = httpx.get(address)
            assert answer.status_code == 410, damage
            assert re.search(named, answer.text), damage


def test_what_is_encrypted_is_opened_by_its_recipient_alone(
    server: RunningServer, tiny_folder: Path, trained: tinker.TrainingClient, tmp_path: Path
) -> None:
    mine, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    path = trained.save_weights_external("secret", age_encryption_recipients=[str(mine.to_public())]).result().path
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    urls = rest.get_external_weights_urls(path).result().urls
    assert sorted(urls) == ["adapter_config.json.age", "adapter_model.safetensors.age"]
    folder = server.data / "checkpoints" / trained.model_id.replace(":", "_") / "external_weights" / "secret"
    assert sorted(file.name for file in folder.iterdir()) == [*sorted(urls), "checksums.json"]
    for name, url in urls.items():
        content = httpx.get(url).content
        (tmp_path / name.removesuffix(".age")).write_bytes(pyrage.decrypt(content, [mine]))
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(content, [other])
    assert_same_in_peft(trained, tiny_folder, tmp_path)
    with pytest.raises(tinker.TinkerError, match="age_encryption_recipient 'age1x'"):
        trained.save_weights_external("wrong", age_encryption_recipients=["age1x"]).result()
    assert not (folder.parent / "wrong").exists()


@pytest.mark.slow
def test_the_cookbook_downloads_what_can_be_trained_further_and_what_was_exported(
    server: RunningServer, tiny_folder: Path, trained: tinker.TrainingClient, tmp_path: Path
) -> None:
    """A training checkpoint is exported by it under another name, encrypted for itself."""
    code = """
import os, sys
from tinker_cookbook.weights import download
print(download(tinker_path=sys.argv[1], output_dir=sys.argv[2]), flush=True)
os._exit(0)  # threads of its libraries may abort the interpreter's own end, which is not what is tested
"""
    environment = os.environ | {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key}
    for number, save in enumerate((trained.save_state, trained.save_weights_external)):
        folder = tmp_path / str(number)
        command = [sys.executable, "-W", "ignore", "-c", code, save("cookbook").result().path, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        assert_same_in_peft(trained, tiny_folder, folder)


def test_the_sdk_s_command_downloads_a_training_checkpoint(
    server: RunningServer, tiny_folder: Path, trained: tinker.TrainingClient, tmp_path: Path
) -> None:
    path = trained.save_state("command").result().path
    environment = os.environ | {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key}
    command = [sys.executable, "-m", "tinker.cli", "checkpoint", "download", path, "--output", str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    (config,) = tmp_path.rglob("adapter_config.json")
    assert_same_in_peft(trained, tiny_folder, config.parent)
    left = tinker.RestClient(base_url=server.url, api_key=server.key).list_user_checkpoints().result().checkpoints
    assert not [found for found in left if found.checkpoint_id == "external_weights/download"]


def test_another_key_gets_no_address(server: RunningServer, trained: tinker.TrainingClient) -> None:
    path = trained.save_weights_external("mine").result().path
    place = f"{server.url}/api/v1/training_runs/{path.removeprefix('tinker://').replace('/', '/checkpoints/', 1)}"
    for key, status_code in {server.key: (302, 200), made_key(server): (404, 404), "nobody": (401, 401)}.items():
        routes = ("archive", "external_weights_urls")
        answers = [httpx.get(f"{place}/{route}", headers={"x-api-key": key}).status_code for route in routes]
        assert tuple(answers) == status_code
