"""The HTTP process is killed while feedback pours in: whatever was answered is there, once.

Clients go on by retrying under their own ids.
"""

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.processes import children_called

N_PERSONS, N_EACH = 4, 60
UNANSWERED = (502, 503, 429)


@pytest.mark.slow
def test_acknowledged_feedback_survives_kills_and_retries_add_none(tmp_path: Path, tiny_folder: Path) -> None:
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    (data / "models" / "tiny").symlink_to(tiny_folder)
    with running_server(str(data), ["--model", "tiny", "--precision", "fp32", "--threads", "1"]) as server:
        turn = recorded_turn(server)
        acknowledged, unanswered = dict[str, int](), list[str]()
        persons = [
            threading.Thread(target=talk, args=(server, turn, f"p{number}", acknowledged, unanswered))
            for number in range(N_PERSONS)
        ]
        for person in persons:
            person.start()
        for _ in range(3):
            time.sleep(1.5)
            kill_web(server)
        for person in persons:
            person.join(120)
        with client_of(server) as client:
            page = all_of(client)
    assert unanswered, "nobody was hit"
    kept = {one["id"]: one["number"] for one in page}
    assert len(page) == len(kept) == N_PERSONS * N_EACH
    assert kept == acknowledged, "a retry is answered with the number of the first time"


def all_of(client: httpx.Client) -> list[dict[str, Any]]:
    """Everything that is kept, when the last process that was killed is back."""
    until = time.monotonic() + 60
    while True:
        try:
            answer = client.get("/loop/v1/deployments/bot/feedback", params={"limit": 1000})
        except httpx.HTTPError:
            assert time.monotonic() < until
            time.sleep(0.1)
            continue
        feedback: list[dict[str, Any]] = answer.raise_for_status().json()["feedback"]
        return feedback


def client_of(server: RunningServer) -> httpx.Client:
    headers = {"authorization": f"Bearer {server.key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=30, trust_env=False)


def recorded_turn(server: RunningServer) -> str:
    """The id of a turn that is kept."""
    with client_of(server) as client:
        client.put("/loop/v1/deployments/bot", json={"target": "tiny", "record": True}).raise_for_status()
        body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        id = str(client.post("/v1/chat/completions", json=body).raise_for_status().json()["id"])
        until = time.monotonic() + 20
        while client.get(f"/loop/v1/turns/{id}").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
    return id


def talk(server: RunningServer, turn: str, who: str, acknowledged: dict[str, int], unanswered: list[str]) -> None:
    """One person changes an opinion again and again, and repeats what was not answered."""
    with client_of(server) as client:
        for number in range(N_EACH):
            id = f"{who}-statement-{number}"
            body = {"target_id": turn, "metric": "thumb", "value": number % 2 == 0, "who": who, "id": id}
            while id not in acknowledged:
                try:
                    answer = client.post("/loop/v1/feedback", json=body)
                except httpx.HTTPError:
                    unanswered.append(id)
                    time.sleep(0.1)
                    continue
                if answer.status_code in UNANSWERED:
                    time.sleep(0.1)
                    continue
                assert answer.status_code == 200, answer.text
                acknowledged[id] = answer.json()["number"]
            time.sleep(0.02)


def kill_web(server: RunningServer) -> None:
    for child in children_called(server.pid, "loreloop.cli.http_process"):
        with contextlib.suppress(psutil.NoSuchProcess):  # it had ended by itself
            child.send_signal(signal.SIGKILL)
