"""An engine process around the fake engine: `python -m tests.host.engine_process SOCKET FOLDER SECONDS REPLICA`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from loreloop.config import EngineConfig
from loreloop.engine.fake import FakeEngine
from loreloop.host.link import EngineLink
from loreloop.protocol.link import Hello
from loreloop.scheduler.loop import Scheduler
from tests.scheduler.words import WordMatcher


def serve(
    path: Path,
    folder: Path,
    seconds: float,
    snapshot_seconds: float = 0.05,
    engine: FakeEngine | None = None,
    replica: int = 0,
) -> None:
    """Runs until the other side hangs up or says Shutdown."""
    engine = engine or FakeEngine(rooms=32, layer_seconds=seconds, token_seconds=seconds)
    link = EngineLink(path)
    link.send(Hello("fake", engine.info, replica))
    config = msgspec.structs.replace(EngineConfig(), snapshot_seconds=snapshot_seconds, decode_gap_ms=5)
    folder.mkdir(parents=True, exist_ok=True)
    Scheduler(engine, link.inbox, link.send, WordMatcher, config, folder).run()  # type: ignore[arg-type]
    link.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), replica=int(sys.argv[4]))
