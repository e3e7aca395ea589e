"""The feeds of a test before a real server, at an address of their own: what the feeds do not answer is passed on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import msgspec

from tests.loop.feeds import Feeds

# Of each hop alone. An answer's encoding goes too, since the client here has undone it; a request's stays.
DROPPED = {"host", "content-length", "connection", "transfer-encoding", "accept-encoding", "date"}


@contextmanager
def before(server: str, feeds: Feeds) -> Iterator[str]:
    """The address at which the feeds stand before the server, while the block runs."""
    behind = httpx.Client(base_url=server, timeout=120)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in DROPPED}
            asked = httpx.Request(self.command, f"{server}{self.path}", content=body, headers=headers)
            found = feeds.answer(asked)
            sent = behind.send(asked) if found is None else httpx.Response(200, content=msgspec.json.encode(found))
            self.send_response(sent.status_code)
            for name, value in sent.headers.items():
                if name.lower() not in DROPPED | {"content-encoding"}:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(sent.content)))
            self.end_headers()
            self.wfile.write(sent.content)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            return

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, httpx.HTTPError):
                return  # whoever asked was killed, as the test wants it

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{site.server_address[1]}"
    finally:
        site.shutdown()
        site.server_close()
        thread.join()
        behind.close()
