"""Wrong keys are slowed down, by address; right ones are not, unless they are new where too many wrong ones came."""

import asyncio
import logging
from collections.abc import Callable

import httpx
import pytest

from loreloop.cli.server import RunningServer
from loreloop.http import guessing
from loreloop.http.guessing import Guesses, address_of
from loreloop.http.rates import Rate
from loreloop.http.services import now
from loreloop.protocol.errors import Unavailable
from loreloop.store import audit
from tests.http.browser import Browser, words
from tests.http.site import Site, play

BURST = int(guessing.OF_ADDRESS.burst)
ASKS: dict[str, Callable[[httpx.AsyncClient, str], object]] = {
    "x-api-key": lambda client, key: client.get("/api/v1/sessions", headers={"x-api-key": key}),
    "bearer": lambda client, key: client.get("/v1/models", headers={"authorization": f"Bearer {key}"}),
    "token": lambda client, key: client.get("/v1/models", headers={"authorization": f"Bearer eyJ{key}.a.b"}),
    "anthropic": lambda client, key: client.post("/anthropic/api/v1/messages", headers={"x-api-key": key}, json={}),
    "page": lambda client, key: client.get("/ui/runs", headers={"x-api-key": key, "accept": "application/json"}),
    "sign-in": lambda client, key: client.post("/ui/sign-in", data={"key": key}, headers={"origin": "http://site"}),
}


def from_address(site: Site, address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(site.app, client=(address, 4711)), base_url="http://site")


async def guess(client: httpx.AsyncClient, n: int, way: str = "bearer") -> list[int]:
    return [(await ASKS[way](client, f"tml-{way}-{number}")).status_code for number in range(n)]


@pytest.mark.parametrize("way", ASKS)
def test_an_address_that_guesses_is_told_no_more(way: str) -> None:
    async def scene(site: Site) -> None:
        stranger = from_address(site, "10.0.0.1")
        statuses = await guess(stranger, BURST + 3, way)
        assert set(statuses[: BURST - 3]) == {401}
        assert set(statuses[-3:]) == {429}
        refused = await ASKS[way](stranger, "tml-more")
        assert 1 <= int(refused.headers["retry-after"]) <= 2

    play(scene, engine=False)


def test_a_right_key_is_not_told_of_there_either_and_is_elsewhere() -> None:
    async def scene(site: Site) -> None:
        await guess(stranger := from_address(site, "10.0.0.1"), BURST)
        key = site.new_key("infer")
        assert (await ASKS["bearer"](stranger, key)).status_code == 429
        assert (await ASKS["bearer"](from_address(site, "10.0.0.2"), key)).status_code == 200

    play(scene, engine=False)


def test_who_has_come_with_a_right_key_goes_on_from_the_same_address() -> None:
    async def scene(site: Site) -> None:
        stranger, key = from_address(site, "10.0.0.1"), site.new_key("infer")
        assert (await ASKS["bearer"](stranger, key)).status_code == 200
        assert (await guess(stranger, BURST + 1))[-1] == 429
        assert (await ASKS["bearer"](stranger, key)).status_code == 200
        token = (await stranger.post("/api/v1/auth/token", headers={"x-api-key": key}, json={})).json()["jwt"]
        assert (await ASKS["bearer"](stranger, token)).status_code == 200

    play(scene, engine=False)


def test_one_wrong_key_that_is_sent_again_and_again_shuts_out_nobody_else() -> None:
    async def scene(site: Site) -> None:
        stranger = from_address(site, "10.0.0.1")
        statuses = [(await ASKS["bearer"](stranger, "tml-old")).status_code for _ in range(3 * BURST)]
        assert (statuses[0], statuses[-1]) == (401, 429)
        assert (await ASKS["bearer"](stranger, site.new_key("infer"))).status_code == 200

    play(scene, engine=False)


def test_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "OF_ADDRESS", Rate(per_second=20, burst=2))

    async def scene(site: Site) -> None:
        assert (await guess(stranger := from_address(site, "10.0.0.1"), 3))[-1] == 429
        await asyncio.sleep(0.1)
        assert (await ASKS["bearer"](stranger, site.new_key("infer"))).status_code == 200

    play(scene, engine=False)


def test_it_is_told_by_a_page_once_in_the_log_and_once_in_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(site: Site) -> None:
        stranger = from_address(site, "10.0.0.1")
        await guess(stranger, BURST + 5)
        site.client_with = lambda _key: stranger  # type: ignore[method-assign,assignment]
        page = await Browser(site).sign_in("tml-other")
        assert (page.status_code, "Too many wrong keys" in words(page.text)) == (429, True)
        await asyncio.sleep(guessing.NOTE_SECONDS + 0.2)
        found = site.services.store.read(audit.between, 0, now() + 1, "key")
        assert [(entry.event, entry.details["address"]) for entry in found] == [("key_guesses", "10.0.0.1")]

    with caplog.at_level(logging.WARNING):
        play(scene, engine=False)
    assert sum("too many wrong keys come from 10.0.0.1" in line for line in caplog.messages) == 1
    assert "tml-" not in caplog.text


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "MOST_TRIED", 100)

    async def scene(site: Site) -> None:
        guesses = Guesses(site.services.store)
        for number in range(1000):
            guesses.admit(f"10.0.{number >> 8}.{number & 255}", "tml-x")
            guesses.learn(f"10.0.{number >> 8}.{number & 255}", "tml-x", right=False)
        assert (len(guesses.tried), guesses.noted) == (100, set())
        for number in range(1000):
            for secret in range(BURST):
                guesses.learn(f"11.0.{number >> 8}.{number & 255}", f"tml-{secret}", right=False)
            with pytest.raises(Unavailable):
                guesses.admit(f"11.0.{number >> 8}.{number & 255}", "tml-x")
        assert len(guesses.noted) == guessing.MOST_NOTED
        guesses.behind.call_off()

    play(scene, engine=False)


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("10.0.0.1", 1), "10.0.0.1"),
        (("::ffff:10.0.0.1", 1), "10.0.0.1"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("forwarded\nnonsense", 1), "an address that cannot be read"),
        (None, "an address that cannot be read"),
    ],
    ids=["ipv4", "mapped", "ipv6", "nonsense", "none"],
)
def test_one_client_has_one_address(client: tuple[str, int] | None, address: str) -> None:
    assert address_of(client) == address


def test_behind_a_proxy_of_this_machine_the_address_counts_that_it_names(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url) as proxy:
        for number in range(BURST + 1):
            headers = {"x-api-key": f"tml-{number}", "x-forwarded-for": "10.1.1.1"}
            refused = proxy.get("/v1/models", headers=headers)
        assert refused.status_code == 429
        for address, status in (("10.1.1.2", 200), ("10.1.1.1", 429)):
            headers = {"x-api-key": server.key, "x-forwarded-for": address}
            assert proxy.get("/v1/models", headers=headers).status_code == status
