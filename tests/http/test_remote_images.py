"""Images by address: which addresses are asked for, and what all of a request may cost."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from loreloop.config import LimitConfig
from loreloop.http import remote_images
from loreloop.http.remote_images import MAX_ADDRESSES, ImageWeb
from loreloop.protocol.errors import BadRequest

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
SLOW_SECONDS = 0.3


class _Pictures(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections: set[object]
    cookies: list[str | None]

    def do_GET(self) -> None:
        self.connections.add(self.client_address)
        self.cookies.append(self.headers["cookie"])
        if self.path.startswith("/slow"):
            threading.Event().wait(SLOW_SECONDS)
        body = PNG + bytes(600_000) if self.path.startswith("/large") else b"x" if self.path == "/text" else PNG
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Set-Cookie", "who=me")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place() -> Iterator[str]:
    """The host and port of a server of pictures."""
    _Pictures.connections, _Pictures.cookies = set(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def images(hosts: tuple[str, ...], *requests: list[str], **limits: int) -> int:
    """How many images the last request got."""

    async def run() -> int:
        web = ImageWeb(hosts, LimitConfig(**limits))
        try:
            return [len(await web.images(urls)) for urls in requests][-1]
        finally:
            await web.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "http://[",
        "http://[::1",
        "http://allowed:port/a",
        "http://allowed:99999/a",
        "http://allowed:-1/a",
        "http://allowed:0/a",
        "http://allowed:22/a",
        "http://me:secret@allowed/a",
        "http://allowed\\@other/a",
        "http://allowed@other/a",
        "http://xn--/a",
        "http://\ud800/a",
        "http:///a",
        "http://" + "a" * 70_000,
        "ftp://allowed/a",
        "//allowed/a",
        "",
    ],
)
def test_addresses_that_are_none_or_not_allowed_are_refused(url: str) -> None:
    with pytest.raises(BadRequest, match=r"is none|is not asked for"):
        images(("allowed",), [url])


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("Allowed", "http://ALLOWED/a"),
        ("allowed", "https://allowed:443/a"),
        ("allowed", "https://allowed:80/a"),
        ("allowed:80", "http://allowed/a"),
        ("allowed:8080", "http://allowed:8080/a"),
        ("[::1]", "http://[::1]/a"),
        ("[::1]:8080", "https://[::1]:8080/a"),
    ],
)
def test_a_host_is_allowed_with_its_usual_ports_or_with_one(host: str, url: str) -> None:
    assert ImageWeb((host,), LimitConfig())._allowed(url) == httpx.URL(url)
    if ":8080" in host:
        with pytest.raises(BadRequest, match="not asked for"):
            ImageWeb((host,), LimitConfig())._allowed("http://allowed/a")


def test_all_that_fails_is_told_in_the_same_words(place: str) -> None:
    said = set()
    for url in (f"http://{place}/gone", f"http://{place}/text", f"https://{place}/a", "http://127.0.0.1:9/a"):
        with pytest.raises(BadRequest) as caught:
            images((place, "127.0.0.1:9"), [url])
        said.add(caught.value.message.replace(url, "URL"))
    assert len(said) == 1


def test_a_request_names_a_bounded_number(place: str) -> None:
    urls = [f"http://{place}/{number}" for number in range(MAX_ADDRESSES + 1)]
    assert images((place,), urls[1:]) == MAX_ADDRESSES
    with pytest.raises(BadRequest, match="17 images are named by address"):
        images((place,), urls)


def test_images_are_bounded_together(place: str) -> None:
    urls = [f"http://{place}/large{number}" for number in range(2)]
    assert images((place,), urls[:1], body_mib=1) == 1
    with pytest.raises(BadRequest, match="all 1"):
        images((place,), urls, body_mib=1)


def test_one_deadline_is_for_all(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_images, "FETCH_SECONDS", 2 * SLOW_SECONDS)
    urls = [f"http://{place}/slow{number}" for number in range(3)]
    assert images((place,), urls[:1]) == 1
    with pytest.raises(BadRequest, match="gave no image in time"):
        images((place,), urls)


def test_requests_share_connections_and_no_cookies(place: str) -> None:
    assert images((place,), [f"http://{place}/a"], [f"http://{place}/b"]) == 1
    assert len(_Pictures.connections) == 1
    assert _Pictures.cookies == [None, None]
