"""The pages of a real server: signed in by a form over a socket, trained by the SDK, with curves of what it did."""

import time

import httpx
import pytest
import tinker

from loreloop.cli.server import RunningServer
from tests.sdk.clients import datum, trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_what_the_sdk_trains_is_on_the_page(server: RunningServer) -> None:
    client = trainer(server)
    losses = []
    for _ in range(3):
        passed = client.forward_backward([datum()], "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
        losses.append(passed.result().metrics["loss:sum"])
    saved = client.save_weights_for_sampler("page").result().path
    run_id = saved.removeprefix("tinker://").split("/")[0]
    host = server.url.removeprefix("http://")
    with httpx.Client(base_url=server.url, headers={"accept": "text/html"}, trust_env=False) as browser:
        assert browser.get("/ui/runs").status_code == 401
        headers = {"origin": f"http://{host}"}
        assert browser.post("/ui/sign-in", data={"key": server.key}, headers=headers).status_code == 303
        told = {"series": {run_id: {}}}
        deadline = time.monotonic() + 30
        while len(told["series"][run_id].get("loss", [])) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
            told = browser.get(f"/ui/runs/{run_id}", headers={"accept": "application/json"}).json()
        series = told["series"][run_id]
        n_tokens = series["trained_tokens"][0][1]
        assert [value for _, value in series["loss"]] == pytest.approx([loss / n_tokens for loss in losses])
        page = browser.get(f"/ui/runs/{run_id}")
        assert page.status_code == 200
        assert saved in page.text
        assert page.text.count("<polyline") == page.text.count("<figure")
        with browser.stream("GET", f"/ui/runs/{run_id}/live") as stream:
            first = next(line for line in stream.iter_lines() if line)
        assert first == "event: page"
