"""A headless Chromium that opens pages and takes pictures of them, driven over its own debugging protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS, ANSWER_SECONDS = 30.0, 30.0
DRAWN_SECONDS = 1.5  # for a page's script to draw its curves


class Browser:
    """One page of it. `theme` is dark or light, as a system would say it; `problems` are what pages have complained
    of."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.n_asked = socket, 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        self.n_asked += 1
        self.socket.send(json.dumps({"id": self.n_asked, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv(timeout=ANSWER_SECONDS))).get("id") != self.n_asked:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])
        if message["method"] == "Runtime.exceptionThrown":
            self.problems.append(message["params"]["exceptionDetails"]["text"])

    def run(self, script: str) -> Any:
        """What a script of the page comes to."""
        return self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"].get(
            "value"
        )

    def look_as(self, theme: str, width: int, height: int) -> None:
        """From now on pages are shown in this theme and size."""
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str) -> None:
        """Goes to an address, and waits until the page is there and drawn."""
        self.ask("Page.navigate", url=url)
        self.settle()

    def settle(self) -> None:
        """Waits until the page is there and drawn."""
        deadline = time.monotonic() + ANSWER_SECONDS
        time.sleep(0.3)
        while self.run("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(DRAWN_SECONDS)

    def picture(self, file: Path) -> None:
        """What is seen now, as a PNG."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium of its own, with nothing of any user's; it ends with the block."""
    command = next(filter(None, map(shutil.which, NAMES)), None)
    if command is None:
        sys.exit("No Chromium is there; Debian's package is called chromium.")
    # Processes of its own may still write to its folder when it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        place = [f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen([command, *flags, *place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(folder) / "DevToolsActivePort")
            pages = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json()
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(address, max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait()


def _port(file: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while not (file.exists() and file.read_text().strip()):
        if time.monotonic() > deadline:
            sys.exit("Chromium did not start.")
        time.sleep(0.1)
    return int(file.read_text().split()[0])
