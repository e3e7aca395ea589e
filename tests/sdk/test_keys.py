"""One key's things do not exist for another key, also when it knows their ids."""

import subprocess
import sys

import httpx
import pytest
import tinker

from loreloop.cli.server import RunningServer
from tests.sdk.clients import GREEDY, IDS, made_key, prompt, service, trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_other_keys_see_nothing(server: RunningServer) -> None:
    client = trainer(server)
    path = client.save_weights_for_sampler("mine").result().path
    state = client.save_state("mine").result().path
    other = service(server, made_key(server))
    rest = tinker.RestClient(base_url=server.url, api_key=made_key(server))
    assert rest.list_training_runs().result().training_runs == []
    for asked in (
        lambda: rest.get_training_run(client.model_id).result(),
        lambda: rest.list_checkpoints(client.model_id).result(),
        lambda: rest.delete_checkpoint_from_tinker_path(path).result(),
        lambda: other.create_sampling_client(model_path=path).result(),
        lambda: other.create_training_client_from_state(state).result(),
    ):
        with pytest.raises(tinker.NotFoundError):
            asked()
    assert client.save_weights_and_get_sampling_client().result().sample(prompt(IDS), 1, GREEDY).result()


def test_other_keys_cannot_use_ids(server: RunningServer) -> None:
    client = trainer(server)
    headers = {"x-api-key": made_key(server)}
    step = {"model_id": client.model_id, "seq_id": 1, "adam_params": {}}
    assert httpx.post(f"{server.url}/api/v1/optim_step", json=step, headers=headers).status_code == 404
    future = {"request_id": f"{client.model_id}:0"}
    assert httpx.post(f"{server.url}/api/v1/retrieve_future", json=future, headers=headers).status_code == 404
    assert client.optim_step(tinker.AdamParams()).result()


def test_scopes_are_held_to(server: RunningServer) -> None:
    key = made_key(server, "--scope", "infer")
    assert service(server, key).create_sampling_client(base_model="tiny").result()
    with pytest.raises(tinker.PermissionDeniedError, match="scope 'train'"):
        service(server, key).create_lora_training_client("tiny").result()


def test_a_revoked_key_is_out(server: RunningServer) -> None:
    key = made_key(server)
    command = [sys.executable, "-m", "loreloop.cli", "keys"]
    listed = subprocess.run([*command, "list", "--data", str(server.data)], capture_output=True, text=True, check=True)
    key_id = listed.stdout.splitlines()[-1].split()[0]
    assert key not in listed.stdout
    subprocess.run([*command, "revoke", key_id, "--data", str(server.data)], check=True, capture_output=True)
    assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 401
