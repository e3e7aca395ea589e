"""What a step has learned from: samples of one prompt side by side, their advantages, and who may look at them."""

import numpy as np
import pytest
from sqlalchemy import Connection, update

from loreloop.engine.fake import FakeEngine
from loreloop.protocol import wire_pb2 as wire
from loreloop.protocol.training import ForwardBackward
from loreloop.store import step_passes
from loreloop.store.schema import OPS
from tests.http.browser import Browser, signed_in, words
from tests.http.site import Site, passing, play, step
from tests.store.place import write_now


class Learner(FakeEngine):
    """It learns from answers as from examples."""

    def _can_compute(self, op: ForwardBackward) -> bool:
        return op.model_id in self.models


PROMPT, OTHER = [11, 12], [13, 14]
ANSWERS = ((PROMPT, [21, 22, 23], 1.0), (PROMPT, [24, 25, 26], -1.0), (OTHER, [27, 28, 29], 0.0))


def drawn(prompt: list[int], answer: list[int], advantage: float) -> wire.Datum:
    """A sampled answer as policy losses take it: prompts have no advantage and no log-probability."""
    tokens, n_before = [*prompt, *answer], len(prompt) - 1
    ids = np.array(tokens[:-1], "<i4").tobytes()
    datum = wire.Datum(model_input=[wire.Chunk(encoded_text=wire.EncodedTextChunk(tokens=ids))])
    n = len(tokens) - 1
    targets = wire.Tensor(dtype=wire.DTYPE_INT64, shape=[n], dense=np.array(tokens[1:], "<i8").tobytes())
    datum.loss_fn_inputs["target_tokens"].CopyFrom(targets)
    for name, value in (("advantages", advantage), ("logprobs", -0.25)):
        values = np.array([0.0] * n_before + [value] * len(answer), "<f4").tobytes()
        datum.loss_fn_inputs[name].CopyFrom(wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[n], dense=values))
    return datum


async def owner(site: Site) -> tuple[Browser, str]:
    """A browser of a key, and a run of that key: of two steps, of which the second has learned from answers."""
    await site.start_engine(engine=Learner())
    secret, browser = site.new_key("train"), Browser(site)
    await browser.sign_in(secret)
    site.client.headers["x-api-key"] = secret
    run_id = await site.model()
    await site.train(passing(run_id, 1))
    await site.result("/optim_step", step(run_id, 2))
    data = [drawn(*answer) for answer in ANSWERS]
    body = wire.ForwardBackwardRequest(model_id=run_id, seq_id=3, data=data, loss_fn="importance_sampling")
    assert (await site.train(body)).status_code == 200
    await site.result("/optim_step", step(run_id, 4))
    await site.services.dispatcher.observers.series.flush()
    return browser, run_id


def test_a_steps_samples_stand_by_prompt_with_what_trainer_and_sampler_say() -> None:
    async def scene(site: Site) -> None:
        browser, run_id = await owner(site)
        told = await browser.read(f"/runs/{run_id}/steps/2")
        assert (told["n_samples"], told["n_groups"], told["n_kept"]) == (3, 2, 1)
        assert [[sample["advantage"] for sample in group] for group in told["groups"]] == [[1.0, -1.0], [0.0]]
        first = told["groups"][0][0]
        assert [token["text"].strip() for token in first["tokens"]] == ["12", "21", "22", "23"]
        assert [token["is_learned"] for token in first["tokens"]] == [False, True, True, True]
        assert [token["sampler"] for token in first["tokens"][1:]] == [-0.25] * 3
        trainer = [token["trainer"] for token in first["tokens"][1:]]
        assert first["difference"] == pytest.approx(np.mean(trainer) + 0.25)
        assert sum(each["n"] for each in told["bins"]) == 3
        page = await browser.look(f"/runs/{run_id}/steps/2")
        assert page.count("<article") == 3
        assert ("The step before" in page, "The step after" in page) == (True, False)
        assert "The step after" in await browser.look(f"/runs/{run_id}/steps/1")
        assert "3 of 4 tokens are learned from by importance_sampling; advantage 1" in words(page)
        assert f"/ui/runs/{run_id.replace(':', '%3A')}/steps/2" in await browser.look(f"/runs/{run_id}")

    play(scene, engine=False)


def test_a_bar_of_the_histogram_leads_to_its_samples() -> None:
    async def scene(site: Site) -> None:
        browser, run_id = await owner(site)
        for place, advantage in ((0, -1.0), (5, 0.0), (9, 1.0)):
            told = await browser.read(f"/runs/{run_id}/steps/2?bin={place}")
            assert [[one["advantage"] for one in group] for group in told["groups"]] == [[advantage]]
        page = await browser.look(f"/runs/{run_id}/steps/2?bin=9&by=advantage")
        assert 'class="token above-2"' in page
        assert "below-2" not in page.split("<article", 1)[1]
        for wrong, why in (("bin=x", "number of a bar"), ("by=colour", "must be one of")):
            assert why in words(await browser.look(f"/runs/{run_id}/steps/2?{wrong}", 400))

    play(scene, engine=False)


def test_a_step_of_examples_is_coloured_by_how_little_they_were_expected() -> None:
    async def scene(site: Site) -> None:
        browser, run_id = await owner(site)
        told = await browser.read(f"/runs/{run_id}/steps/1")
        assert (told["n_samples"], told["bins"]) == (1, [])
        shown = words(await browser.look(f"/runs/{run_id}/steps/1"))
        assert "3 of 3 tokens are learned from by cross_entropy" in shown
        assert "The trainer's log-probability" in shown

    play(scene, engine=False)


def test_words_of_a_run_are_for_its_own_key_alone() -> None:
    async def scene(site: Site) -> None:
        _, run_id = await owner(site)
        for scope in ("train", "admin"):
            other = await signed_in(site, scope)
            found = await other.look(f"/runs/{run_id}/steps/2", 404)
            assert found == await other.look("/runs/unknown/steps/2", 404)
        assert "/steps/" not in await (await signed_in(site, "admin")).look(f"/runs/{run_id}")

    play(scene, engine=False)


def test_what_the_journal_has_let_go_is_said_to_be_gone() -> None:
    def let_go(connection: Connection) -> None:
        connection.execute(update(OPS).values(location=None))

    async def scene(site: Site) -> None:
        browser, run_id = await owner(site)
        assert site.office.store.read(step_passes.kept_steps, run_id, 10) == [2, 1]
        write_now(site.office.store, let_go)
        assert "is gone: the server keeps it until" in words(await browser.look(f"/runs/{run_id}/steps/2"))
        assert "newest steps have learned" not in await browser.look(f"/runs/{run_id}")
        for unknown in ("0", "3", "x", "9" * 30):
            await browser.look(f"/runs/{run_id}/steps/{unknown}", 404)

    play(scene, engine=False)


def test_a_run_of_a_model_that_is_served_no_more_shows_ids() -> None:
    async def scene(site: Site) -> None:
        browser, run_id = await owner(site)
        site.services.names.folders.clear()
        site.services.names.ordered.clear()
        assert "21 22 23" in words(await browser.look(f"/runs/{run_id}/steps/2"))

    play(scene, engine=False)
