"""The border of the application: keys, scopes, bodies, unknown routes, and errors as answers."""

import asyncio

import httpx
import pytest
import zstandard
from starlette.requests import Request

from loreloop.http import guessing
from loreloop.http.application import on_error
from loreloop.http.rates import Rate
from loreloop.protocol import errors
from tests.http.site import PROTOBUF, Site, new_model, passing, play, sample, step

OPEN = {"/healthz", "/api/v1/healthz", "/metrics", "/openapi.json"}
# An address that is signed, and what a model was published with: neither answers to a name that nothing has.
KEYLESS = ("/api/v1/downloads/", "/hf/")
SIGNED = "/f/"  # links with a signature in the place of a key
KNOWN_GAP = {"/api/v1/create_model"}  # reads the body before the key
# How pages begin and end, and what they look like; they say nothing of the server, and begin no visit without a key.
OF_PAGES = {
    ("GET", "/ui/sign-in"): 200,
    ("POST", "/ui/sign-in"): 403,
    ("POST", "/ui/sign-out"): 403,
    ("GET", "/ui/static/{file}"): 404,
    ("GET", "/ui/{path:path}"): 404,
}


def routes(site: Site) -> list[tuple[str, str]]:
    """Every method and path of the application."""
    return [
        (method, prefix + route.path)
        for prefix, route in site.routes()
        for method in (route.methods or set()) - {"HEAD"}
    ]


def test_every_route_but_those_that_say_nothing_of_anybody_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "OF_ADDRESS", Rate(per_second=1e6, burst=1e6))

    async def scene(site: Site) -> None:
        for key in (None, "tml-nobody"):
            async with site.client_with(key) as stranger:
                # A browser asks whether it may send before it sends anything, its key included.
                for method, path in routes(site):
                    if method == "OPTIONS":
                        continue
                    answer = await stranger.request(method, f"http://site{path}", json={})
                    expected = {200} if path in OPEN else {400, 403, 404} if path.startswith(KEYLESS) else {401}
                    expected = {403} if path.startswith(SIGNED) else expected
                    expected = {OF_PAGES[method, path]} if (method, path) in OF_PAGES else expected
                    assert answer.status_code in expected or path in KNOWN_GAP, path

    play(scene, engine=False)


def test_a_stranger_is_asked_for_a_key_before_anything_is_read() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(None) as stranger:
            assert (await site.post("/create_model", {}, stranger)).status_code == 401

    play(scene, engine=False)


def test_a_key_is_taken_from_either_header() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(None) as client:
            bearer = {"authorization": f"Bearer {site.new_key('infer')}"}
            assert (await client.get("http://site/v1/models", headers=bearer)).status_code == 200
            assert (await client.get("http://site/oai/api/v1/models", headers=bearer)).status_code == 200
            for scheme in ("bearer ", "BEARER  ", ""):
                spelled = {"authorization": f"{scheme}{bearer['authorization'][7:]}"}
                assert (await client.get("http://site/v1/models", headers=spelled)).status_code == 200

    play(scene, engine=False)


def test_a_key_that_may_only_infer_does_not_train() -> None:
    async def scene(site: Site) -> None:
        async with site.client_with(site.new_key("infer")) as client:
            session_id = (await site.post("/create_session", {}, client)).json()["session_id"]
            refused = await site.post("/create_model", new_model(session_id), client)
            assert refused.status_code == 403
            assert "scope 'train'" in refused.json()["detail"]
            asked = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "fake"}
            assert (await site.post("/create_sampling_session", asked, client)).status_code == 200

    play(scene, engine=False)


@pytest.mark.parametrize(
    ("kind", "status_code"),
    [
        (errors.BadRequest, 400),
        (errors.Unauthorized, 401),
        (errors.Forbidden, 403),
        (errors.NotFound, 404),
        (errors.Conflict, 409),
        (errors.Gone, 410),
        (errors.TooLarge, 413),
        (errors.Unavailable, 429),
        (errors.ServerError, 500),
        (errors.UserError, 400),
    ],
)
def test_every_error_has_a_status_and_a_body_for_both_clients(
    kind: type[errors.LoreloopError], status_code: int
) -> None:
    response = asyncio.run(_answered(kind("what to do")))
    assert response.status_code == status_code
    assert response.json()["detail"] == response.json()["error"]["message"] == "what to do"


async def _answered(error: errors.LoreloopError) -> httpx.Response:
    async def app(scope, receive, send) -> None:
        await on_error(Request(scope), error)(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://site") as client:
        return await client.get("/")


def test_unknown_routes_and_methods_are_named() -> None:
    async def scene(site: Site) -> None:
        missing = await site.client.get("/nothing")
        assert missing.status_code == 404
        assert "no route GET /api/v1/nothing" in missing.json()["detail"]
        assert (await site.client.get("/create_session")).status_code == 405

    play(scene, engine=False)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/create_session", b"{", "not JSON"),
        ("/create_session", b'{"tags": 3}', "$.tags"),
        ("/create_session", b"\xff\xfe", "not JSON"),
        ("/create_model", b'{"session_id": "s"}', "model_seq_id"),
        ("/asample", b'{"sampling_session_id": "s", "seq_id": -1}', "$.seq_id"),
        ("/create_session", b"[1, 2]", "got `array`"),
    ],
)
def test_wrong_bodies_name_the_place(path: str, body: bytes, words: str) -> None:
    async def scene(site: Site) -> None:
        answer = await site.client.post(path, content=body)
        assert answer.status_code == 400
        assert words in answer.json()["detail"]

    play(scene, engine=False)


@pytest.mark.parametrize("deep", [True, False])
def test_numbers_and_depths_that_nobody_means_are_refused(deep: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(site: Site) -> None:
        if deep:
            answer = await site.client.post("/create_session", content=b'{"user_metadata": {"a": ' + b"[" * 100_000)
        else:
            answer = await site.client.get("/checkpoints", params={"offset": 2**70})
        assert answer.status_code == 400

    play(scene, engine=False)


def test_compressed_passes_are_read() -> None:
    async def scene(site: Site) -> None:
        body = zstandard.compress(passing(await site.model(), 1).SerializeToString())
        headers = PROTOBUF | {"content-encoding": "zstd"}
        answer = await site.client.post("/forward_backward", content=body, headers=headers)
        assert (await site.future(answer.json()["request_id"])).headers["content-type"] == "application/x-protobuf"

    play(scene)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_body_over_the_limit_is_refused(compressed: bool) -> None:
    async def scene(site: Site) -> None:
        body, headers = bytes((1 << 20) + 1), {"content-encoding": "zstd" if compressed else "identity"}
        body = zstandard.compress(body) if compressed else body
        answer = await site.client.post("/create_session", content=body, headers=headers)
        assert answer.status_code == 413
        assert "1 MiB" in answer.json()["detail"]

    play(scene, engine=False, body_mib=1)


def test_a_pass_over_the_limit_uses_its_sequence_id_up() -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        assert (await site.train(passing(model_id, 1, n=1 << 20))).status_code == 413
        accepted = await site.ok("/optim_step", step(model_id, 2))
        assert (await site.post("/retrieve_future", accepted)).status_code == 200

    play(scene, body_mib=1, hold_seconds=0.5)


def test_a_fault_of_ours_is_a_500_that_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(site: Site) -> None:
        site.services.store.reader.close()  # what no client can do
        answer = await site.client.get("/training_runs")
        assert answer.status_code == 500
        request_id = answer.headers["x-request-id"]
        assert answer.json()["detail"].endswith(f"its log says why, under {request_id}.")
        assert request_id in caplog.text

    play(scene, engine=False)
    assert "Traceback" in caplog.text


def test_over_the_limit_of_waiting_samples_the_client_is_told_when_to_come_back() -> None:
    async def scene(site: Site) -> None:
        sampler = await site.sampler()
        answers = [await site.post("/asample", sample(sampler, n, params={"max_tokens": 4000})) for n in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[2].headers["retry-after"]) >= 1

    play(scene, waiting_samples=2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"functions": [{}]}, "The field `functions` is not served here; send them as tools."),
        ({"nonsense": [{}]}, "The field `nonsense` is not served here; leave it out."),
        (
            {"stream_options": {"colour": 1}},
            "The field `colour` is not served here (in `stream_options`); leave it out.",
        ),
        ({"tools": [{"type": "web_search"}]}, "Here it is one of: function, mcp."),
        ({"temperature": "hot"}, "Expected `float | null`, got `str` - at `$.temperature`"),
    ],
)
def test_a_wrong_body_is_explained(body: dict[str, object], said: str) -> None:
    async def scene(site: Site) -> None:
        usual = {"model": "fake", "messages": [{"role": "user", "content": "11"}]}
        refused = await site.client.post("http://site/v1/chat/completions", json=usual | body)
        assert refused.status_code == 400
        assert said in refused.json()["error"]["message"]

    play(scene, engine=False)


def test_wrong_places_and_methods_are_explained() -> None:
    async def scene(site: Site) -> None:
        assert "OpenAI's API is under /v1" in (await site.client.post("http://site/chat/completions", json={})).text
        wrong = await site.client.get("http://site/v1/chat/completions")
        assert (wrong.status_code, "send POST" in wrong.text) == (405, True)

    play(scene, engine=False)
