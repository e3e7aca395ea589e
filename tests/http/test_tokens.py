"""Tokens: they stand for a key for a while, and no longer by their own doing."""

from loreloop.host.job_desk import _InHand
from loreloop.http import tokens
from loreloop.http.services import now
from loreloop.store import jobs, keys
from loreloop.store.files import SECRET, read_secret
from loreloop.store.job_rows import JobRow
from tests.http.site import Site, play
from tests.store.test_uploads import plan


async def token_of(site: Site, key: str) -> str:
    async with site.client_with(key) as client:
        return (await client.post("/auth/token", json={})).json()["jwt"]


async def refused(site: Site, secret: str) -> list[int]:
    """What an exchange and a giving up come to."""
    async with site.client_with(secret) as client:
        answers = [await client.post("/auth/token", json={}), await client.delete("/auth/apikey/me")]
        assert (await client.get("/sessions")).status_code == 200, "it stands for the key else"
    return [answer.status_code for answer in answers]


def test_a_token_gives_no_other_token_and_gives_nothing_up() -> None:
    async def scene(site: Site) -> None:
        key = site.new_key("train")
        assert await refused(site, await token_of(site, key)) == [403, 403]
        async with site.client_with(key) as client:
            assert (await client.delete("/auth/apikey/me")).status_code == 200
            assert (await client.get("/sessions")).status_code == 401

    play(scene, engine=False)


def test_a_token_ends_with_its_hour() -> None:
    async def scene(site: Site) -> None:
        secret = read_secret(site.services.store.folder / SECRET)
        key = site.services.store.read(keys.find, site.client.headers["x-api-key"], now())
        assert key is not None
        old = tokens.mint(secret, key, now() - tokens.LIFETIME_SECONDS - 1)
        async with site.client_with(old) as client:
            assert (await client.get("/sessions")).status_code == 401

    play(scene, engine=False)


def test_a_jobs_secret_is_changed_for_nothing_that_outlives_it() -> None:
    async def scene(site: Site) -> None:
        key = site.services.store.read(keys.find, site.client.headers["x-api-key"], now())
        assert key is not None
        row = JobRow(id=jobs.new_id(), key_id=key.id, created=1.0, plan=plan())
        site.services.desk.in_hand[row.id] = _InHand(row, "tml-job-x")
        assert await refused(site, "tml-job-x") == [403, 403]

    play(scene, engine=False)


def test_what_cannot_be_exchanged_is_not_told_to() -> None:
    async def scene(site: Site) -> None:
        site.services.config.sdk_flags["pjwt_auth_enabled"] = True
        key = site.client.headers["x-api-key"]
        told = {}
        for name, secret in (("key", key), ("token", await token_of(site, key))):
            async with site.client_with(secret) as client:
                told[name] = (await client.post("/client/config", json={})).json()["pjwt_auth_enabled"]
        assert told == {"key": True, "token": False}

    play(scene, engine=False)
