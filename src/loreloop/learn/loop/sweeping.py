"""Copies of weights that guards have looked at amid a training, and that nothing needs behind it.

A watch deletes its copies as it goes on, but for the last ones; and what a death leaves between a copy and the note of
it no file names. So they are found by their names. Knows no stage of a loop.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import tinker

from loreloop.learn.clients import forgotten
from loreloop.learn.methods import METHODS

PAGE = 500
# As `TrainingWatch` calls them, behind the name of a cycle's run.
COPIES = r"-\d{4,}-(%s)-(seen|good)-\d{6}"


async def swept(service: tinker.ServiceClient, deployment: str, keep: Collection[str]) -> int:
    """Deletes such copies of a deployment's cycles, but for those of some paths; how many there were. They are only
    found among the weights that the loop's key has saved."""
    name = re.compile(re.escape(deployment) + COPIES % "|".join(METHODS))
    rest, found, start = tinker.RestClient(service.holder), list[str](), 0
    while True:
        page = await rest.list_user_checkpoints(limit=PAGE, offset=start)
        found += [
            one.tinker_path
            for one in page.checkpoints
            if name.fullmatch(one.tinker_path.rsplit("/", 1)[-1]) and one.tinker_path not in keep
        ]
        start += PAGE
        if len(page.checkpoints) < PAGE:
            break
    await forgotten(service, found)
    return len(found)
