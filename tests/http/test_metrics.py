"""`/metrics`: what a Prometheus server reads there, without a key, and what it must not."""

import re
from pathlib import Path

import msgspec

from loreloop.http.operations.metrics import Family, Sample
from loreloop.protocol.link import Batch, BatchDone, ColdLoads, Meters, OpEnd
from loreloop.protocol.training import Done
from tests.http.site import Site, play, save

LINE = re.compile(r'([a-z_]+)(?:\{(\w+="(?:[^"\\\n]|\\.)*"(?:,\w+="(?:[^"\\\n]|\\.)*")*)\})? (\S+)')
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


async def read(site: Site) -> dict[str, float]:
    async with site.client_with(None) as nobody:
        answer = await nobody.get("http://site/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values, typed = {}, set()
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, _ = line.split(" ")
            assert name not in typed
            typed.add(name)
        elif not line.startswith("# HELP "):
            found = LINE.fullmatch(line)
            assert found, line
            assert re.sub("_(bucket|sum|count)$", "", found[1]) in typed or found[1] in typed
            values[line.rpartition(" ")[0]] = float(found[3])
    return values


def test_what_passed_is_counted() -> None:
    async def scene(site: Site) -> None:
        body = {"model": "fake", "prompt": "11 12 13", "max_tokens": 4, "n": 2}
        for stream in (False, True):
            asked = await site.client.post("http://site/v1/completions", json=body | {"stream": stream})
            assert asked.status_code == 200
        await site.client.post("http://site/v1/completions", json={"model": "none", "prompt": "1"})
        for unknown in ("nowhere", "v1/nowhere"):
            await site.client.get(f"http://site/{unknown}")
        model_id = await site.model()
        path = (await site.result("/save_weights_for_sampler", save(model_id, 1, "secret-name")))["path"]
        await site.client.post("http://site/v1/completions", json=body | {"model": path})
        values = await read(site)
        assert values['loreloop_http_requests_total{route="completions",status="200"}'] == 3
        assert values['loreloop_http_requests_total{route="completions",status="404"}'] == 1
        assert values['loreloop_http_requests_total{route="none",status="404"}'] == 2
        assert values['loreloop_sample_requests_total{model="fake",outcome="done"}'] == 3
        assert values['loreloop_prompt_tokens_total{model="fake"}'] == 9
        assert values['loreloop_generated_tokens_total{model="fake"}'] == 24
        assert values['loreloop_training_operations_total{model="fake",outcome="done"}'] == 2
        assert values['loreloop_engine_up{model="fake"}'] == 1
        assert "secret-name" not in str(values)

    play(scene)


def test_what_an_engine_says_of_itself_is_shown() -> None:
    loads = ColdLoads((1, 0, 2, 0, 0, 0, 0, 1), 3.5, 3.0)

    async def scene(site: Site) -> None:
        site.services.dispatcher.engines["fake"].training.meters = Meters(100, 40, 16, 30, 7, loads)
        values = await read(site)
        assert values['loreloop_kv_pages_free{model="fake"}'] == 40
        assert values['loreloop_resident_revisions{model="fake"}'] == 16
        assert values['loreloop_revision_hits_total{model="fake"}'] == 30
        name = "loreloop_revision_load_seconds"
        assert values[name + '_bucket{model="fake",le="0.01"}'] == 1
        assert values[name + '_bucket{model="fake",le="0.025"}'] == 3
        assert values[name + '_bucket{model="fake",le="+Inf"}'] == 4 == values[name + '_count{model="fake"}']
        assert values[name + '_sum{model="fake"}'] == 3.5
        assert values['loreloop_revision_longest_load_seconds{model="fake"}'] == 3

    play(scene)


def test_every_metric_has_a_line_in_the_docs() -> None:
    page = PAGE.read_text()

    async def scene(site: Site) -> None:
        async with site.client_with(None) as nobody:
            text = (await nobody.get("http://site/metrics")).text
        for name in re.findall(r"# TYPE (\S+)", text):
            assert f"`{name}`" in page, name

    play(scene)


def test_labels_cannot_break_a_line() -> None:
    (_, _, line) = Family("a", "gauge", "b", [Sample(1, {"model": 'x"\ny\\'})]).lines()
    assert line == r'a{model="x\"\ny\\"} 1'


def test_meters_travel_as_they_are() -> None:
    sent = Meters(1, 2, 3, 4, 5, ColdLoads((1,) * 8, 0.5, 0.25))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Meters) == sent


def test_how_far_runs_are_from_their_samplers_is_told_without_their_ids() -> None:
    run = "b4d1ff62-aa18-4a4e-80cb-62de2727c6a2:train:0"

    async def scene(site: Site) -> None:
        end = OpEnd(f"{run}:3", Done(), 0, 0.25)
        site.services.dispatcher.observers.divergences.batch_ended("fake", BatchDone(Batch(1, ()), (end,)))
        values = await read(site)
        assert values['loreloop_sampler_kl_nats{model="fake",run="b4d1ff62:train:0"}'] == 0.25
        assert values['loreloop_sampler_kl_alarms_total{model="fake"}'] == 1
        assert values["loreloop_sampler_kl_alarm_nats"] == 0.1
        assert run not in str(values)

    play(scene)
