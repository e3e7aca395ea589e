"""Pages of others in the browser of somebody who runs a server: what they may not reach, and who is let in all the
same."""

import asyncio
import socket

import httpx
import pytest

from loreloop.cli.server import RunningServer
from loreloop.config import Config, load_config
from loreloop.protocol.errors import WrongSettings
from tests.http.site import Scene, Site, play, site

LOCAL, ABROAD = "http://127.0.0.1:8000", "http://192.168.7.7:8000"  # by which address of the server a client comes
OWN_HOSTS = (
    *("localhost", "LOCALHOST:8000", "localhost.", "app.localhost:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000"),
    *("0.0.0.0:8000", "[::]", "[::ffff:127.0.0.1]:8000", "host.docker.internal:8000"),
)
FOREIGN_HOSTS = (
    *("evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "10.0.0.5:8000"),
    *("127.0.0.1@evil.example", "[fe80::1]:8000", "localhost:80, evil.example", "[", "]:80"),
)
NAMED = {"host_names": ("lora.example.org", "10.9.9.9"), "page_origins": ("https://app.example.org",)}
PAGE = {"origin": "https://app.example.org"}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "1"}], "max_tokens": 2}


def play_with(scene: Scene, **settings: object) -> None:
    async def run() -> None:
        async with site(Config(**settings)) as here:  # type: ignore[arg-type]
            await here.start_engine()
            await asyncio.wait_for(scene(here), 20)

    asyncio.run(run())


def client(site: Site, base: str = LOCAL) -> httpx.AsyncClient:
    made = site.client_with(site.new_key("admin"))
    made.base_url = httpx.URL(base)
    return made


async def living(here: httpx.AsyncClient) -> list[str]:
    return [session["id"] for session in (await here.get("/loop/v1/activity")).json()["living"]["sessions"]]


def test_a_machine_s_own_names_are_answered_over_the_loopback_address() -> None:
    async def scene(site: Site) -> None:
        for host in (*OWN_HOSTS, socket.gethostname(), ""):
            answer = await client(site).get("/healthz", headers={"host": host})
            assert answer.status_code == 200, host

    play(scene, engine=False)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/hf/api/models/org/alias", "/ui/", "/nowhere"])
def test_a_name_of_somebody_else_is_refused_there_on_every_route(path: str) -> None:
    async def scene(site: Site) -> None:
        for host in FOREIGN_HOSTS:
            answer = await client(site).get(path, headers={"host": host})
            assert (answer.status_code, "host_names" in answer.text) == (421, True), host
            assert answer.json()["error"]["type"] == "invalid_request_error"

    play(scene, engine=False)


def test_of_two_names_none_may_be_of_somebody_else() -> None:
    async def scene(site: Site) -> None:
        both = [("host", "localhost"), ("host", "evil.example")]
        assert (await client(site).get("/metrics", headers=both)).status_code == 421

    play(scene, engine=False)


def test_a_server_for_other_machines_is_asked_there_by_any_name() -> None:
    async def scene(site: Site) -> None:
        for host in ("gpu-box:8000", "lora.example.org", "192.168.7.7:8000"):
            assert (await client(site, ABROAD).get("/healthz", headers={"host": host})).status_code == 200, host

    play(scene, engine=False)


def test_names_of_the_settings_are_answered_and_then_asked_for_everywhere() -> None:
    async def scene(site: Site) -> None:
        async def status(base: str, host: str) -> int:
            return (await client(site, base).get("/healthz", headers={"host": host})).status_code

        for host in ("lora.example.org", "LORA.example.org:443", "10.9.9.9", "localhost:8000"):
            assert (await status(LOCAL, host), await status(ABROAD, host)) == (200, 200), host
        # Nobody can point an address elsewhere; behind a proxy of this machine only those are known that were named.
        assert (await status(LOCAL, "192.168.7.7"), await status(ABROAD, "192.168.7.7")) == (421, 200)
        assert (await status(LOCAL, "evil.example"), await status(ABROAD, "evil.example")) == (421, 421)

    play_with(scene, **NAMED)


@pytest.mark.parametrize(
    "said",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": LOCAL},
    ],
    ids=["elsewhere", "another-port", "null", "broken", "cross-site", "same-site"],
)
def test_a_page_of_somebody_else_changes_nothing(said: dict[str, str]) -> None:
    async def scene(site: Site) -> None:
        here = client(site)
        before = await living(here)
        for method, path in (("POST", "/api/v1/create_session"), ("DELETE", "/loop/v1/runs/a"), ("PUT", "/nowhere")):
            answer = await here.request(method, path, json={}, headers=said)
            assert (answer.status_code, "page_origins" in answer.text) == (403, True), (method, path)
            assert "access-control-allow-origin" not in answer.headers
        assert await living(here) == before
        # Others' pages are not shown what they ask for, but no harm is done by it.
        assert (await here.get("/v1/models", headers=said)).status_code == 200

    play(scene, engine=False)


def test_programs_and_pages_of_the_server_itself_are_as_before() -> None:
    async def scene(site: Site) -> None:
        for said in ({}, {"origin": LOCAL}, {"origin": LOCAL, "sec-fetch-site": "same-origin"}):
            answer = await client(site).post("/v1/chat/completions", json=CHAT, headers=said)
            assert answer.status_code == 200, said

    play(scene)


def test_a_page_that_the_settings_name_asks_first_and_reads_its_answers() -> None:
    async def scene(site: Site) -> None:
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-odd"}
        first = await client(site).options("/v1/chat/completions", headers=PAGE | asks)
        assert (first.status_code, first.headers["access-control-allow-headers"]) == (204, "authorization,x-odd")
        assert first.headers["access-control-allow-origin"] == PAGE["origin"]
        for path, status in (("/v1/chat/completions", 200), ("/v1/nowhere", 404)):
            answer = await client(site).post(path, json=CHAT, headers=PAGE | {"sec-fetch-site": "cross-site"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE["origin"])
        other = await client(site).options("/v1/chat/completions", headers=asks | {"origin": "https://app.example"})
        assert (other.status_code, other.headers.get("access-control-allow-origin")) == (405, None)

    play_with(scene, **NAMED)


def test_feedback_by_a_token_comes_from_pages_of_others_and_by_a_key_does_not() -> None:
    async def scene(site: Site) -> None:
        here, page = client(site), {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        by_token = await here.post(
            "/loop/v1/feedback", json={}, headers=page | {"x-api-key": "", "authorization": "Bearer fbt-made-up"}
        )
        assert by_token.status_code == 401
        assert (await here.post("/loop/v1/feedback", json={}, headers=page)).status_code == 403
        assert (await here.post("/loop/v1/feedback-tokens", json={}, headers=page)).status_code == 403
        assert "feedback link is not one of this server" in (await here.post("/f/made-up", headers=page)).text

    play(scene, engine=False)


def test_a_real_server_is_not_asked_by_a_name_of_somebody_else(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.key}) as here:
        assert here.get("/v1/models").status_code == 200
        refused = here.get("/v1/models", headers={"host": "evil.example"})
        assert (refused.status_code, refused.json()["detail"].count("'evil.example'")) == (421, 1)
        assert here.post("/api/v1/create_session", json={}, headers=PAGE).status_code == 403


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("host_names", "https://lora.example.org", "a name such as"),
        ("page_origins", "app.example.org", "an origin such as"),
        ("page_origins", "https://app.example.org/", "an origin such as"),
    ],
    ids=["scheme", "no-scheme", "path"],
)
def test_settings_that_could_mean_nothing_are_refused(setting: str, value: str, told: str) -> None:
    with pytest.raises(WrongSettings, match=f"`{setting}.*{told}"):
        load_config(None, {setting: [value]})
