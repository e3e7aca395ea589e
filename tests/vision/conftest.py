"""A real server of a tiny vision model and of one that reads text only, and a small web server of pictures."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loreloop.cli.server import RunningServer, running_server
from tests.tiny import make_tiny_model
from tests.tiny_vision import make_tiny_vision_model, picture

LIMITS = "[limits]\nimage_mib = 1\nimage_megapixels = 1\nrequest_megapixels = 2\n"


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory, web: str) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("data")
    make_tiny_vision_model(data / "models" / "eyes", "qwen3_vl")
    make_tiny_model(data / "models" / "blind")
    config = data / "config.toml"
    config.write_text(f'image_hosts = ["{web.removeprefix("http://")}"]\n{LIMITS}')
    models = ["--model", "eyes", "--model", "blind", "--precision", "fp32", "--threads", "1", "--config", str(config)]
    with running_server(str(data), models) as running:
        yield running


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = picture(64, 64, format="jpeg") if self.path == "/good" else b"x" * (3 << 20)
        self.send_response({"/moved": 302, "/gone": 404}.get(self.path, 200))
        self.send_header("Location", "/good")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def web() -> Iterator[str]:
    """`/good` is a JPEG of 64 × 64, `/moved` leads there, `/gone` is not, anything else is 3 MiB of nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
