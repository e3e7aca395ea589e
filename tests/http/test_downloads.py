"""Downloads of a checkpoint whose files are not all there any more."""

import shutil
from pathlib import Path

from loreloop.protocol.paths import parse_path
from loreloop.store import checkpoints
from tests.http.site import Site, play, save


def test_files_that_are_gone_are_said_to_be() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        saved = await site.result("/save_weights_for_sampler", save(model_id, 1, "out"))
        row = site.services.store.read(checkpoints.of_anyone, parse_path(saved["path"]))
        run, _, rest = saved["path"].removeprefix("tinker://").partition("/")
        signed = (await site.client.get(f"/training_runs/{run}/checkpoints/{rest}/archive")).headers["location"]
        partly = await site.client.get(signed)  # the engine of these tests writes no adapter
        assert (partly.status_code, "adapter_config.json" in partly.text) == (410, True)
        shutil.rmtree(Path(row.folder))
        assert (await site.client.get(signed)).status_code == 410

    play(scene)
