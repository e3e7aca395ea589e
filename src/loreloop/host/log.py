"""The log of a server: what its processes say, in one file with one writer, and what of it the terminal shows.

A process of the server says things through `logging`; `speak_to_supervisor` makes each record one line on its standard
error, which the supervisor reads. What comes there besides (a library's warning, the last words of a crash) is taken
as it is. Standard output never comes here, since the first start prints a key on it. Knows nothing of what is said.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import traceback
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Protocol

import msgspec

from loreloop.protocol.errors import WrongSettings

MARK = b"\x1e"  # before a record, so that it is told from what anything else prints
MAX_FILE_BYTES, N_OLD_FILES = 32 << 20, 3
MAX_LINE_BYTES = 64 << 10
LAST_WORDS_SECONDS = 0.5
QUIET_LEVEL = logging.WARNING  # what a terminal shows unless it is asked for all


class Record(msgspec.Struct, frozen=True):
    """One thing said; `detail` is for the file alone, a traceback for instance."""

    level: int
    text: str
    detail: str = ""


class Stream(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Takes whole lines."""
        ...

    def flush(self) -> object:
        """Lets go of what was written."""
        ...


class _AsLine(logging.Formatter):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def format(self, record: logging.LogRecord) -> str:
        detail = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        entry = Record(record.levelno, self.source + record.getMessage(), detail or record.stack_info or "")
        return MARK.decode() + msgspec.json.encode(entry).decode()


def speak_to_supervisor() -> None:
    """From now on `logging`, and Python's warnings, reach the supervisor's log."""
    speak_to(sys.stderr)


def speak_to(stream: Stream, source: str = "") -> None:
    """The same for a process whose words come to a process of the server over `stream`, with `source` before each."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_AsLine(source))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("loreloop").setLevel(logging.INFO)
    logging.captureWarnings(True)


class Log:
    """Writes to `file`, and to the terminal what is a warning; with `verbose` everything. WrongSettings where the file
    cannot be written. Any thread, and a signal's handler, may `say`; one thread writes."""

    def __init__(self, file: Path, *, verbose: bool = False) -> None:
        self.file, self.verbose = file, verbose
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _LogFile(file, maxBytes=MAX_FILE_BYTES, backupCount=N_OLD_FILES, encoding="utf-8")
        except OSError as error:
            raise WrongSettings(
                f"The log cannot be written to {file} (`log_file`, --log-file): {error.strerror}. Name another file."
            ) from None
        # This kind of queue may be filled from a signal's handler while the same thread is filling it.
        self._queue: queue.SimpleQueue[tuple[str, Record] | None] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        self._newest: dict[str, threading.Thread] = {}  # by the name of the process that it reads from
        self._last_words: dict[str, str] = {}
        self._writer = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._writer.start()

    def say(self, level: int, source: str, text: str) -> None:
        """Takes one record of a process; it is written soon, by the thread of the log."""
        self._queue.put((source, Record(level, text)))

    def follow(self, source: str, stream: IO[bytes]) -> None:
        """Takes what a process writes there, until it is closed."""
        reader = threading.Thread(target=self._read, args=(source, stream), name=f"log-{source}", daemon=True)
        self._last_words[source] = ""
        self._newest[source] = reader
        reader.start()
        self._readers = [each for each in self._readers if each.is_alive()] + [reader]

    def last_words(self, source: str) -> str:
        """What a process that has ended said last, if anything."""
        self._newest[source].join(LAST_WORDS_SECONDS)
        return self._last_words[source]

    def close(self) -> None:
        """Writes what was said until now, last words of ended processes included."""
        for reader in self._readers:
            reader.join(LAST_WORDS_SECONDS)  # a grandchild may hold the stream open
        self._queue.put(None)
        self._writer.join()
        self._handler.close()

    def _read(self, source: str, stream: IO[bytes]) -> None:
        with stream:
            # A line without an end is taken in pieces, so that a process cannot fill the memory here.
            while line := stream.readline(MAX_LINE_BYTES):
                record = _record_of(line)
                # Only warnings and worse may explain a death.
                if record.text and record.level >= QUIET_LEVEL:
                    self._last_words[source] = record.text.strip()
                self._queue.put((source, record))

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            source, record = entry
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = f"{now} {logging.getLevelName(record.level):<7} {source}: {record.text}"
            self._handler.write("\n".join([text, *(f"    {line}" for line in record.detail.splitlines())]))
            if self.verbose or record.level >= QUIET_LEVEL:
                self._show(f"loreloop {source}: {record.text}")

    def _show(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone; the file has it
            print(text, file=sys.stderr, flush=True)


def _record_of(line: bytes) -> Record:
    if line.startswith(MARK):
        try:
            return msgspec.json.decode(line[len(MARK) :], type=Record)
        except msgspec.DecodeError:  # two processes, or two threads, wrote into one another
            pass
    return Record(QUIET_LEVEL, line.decode(errors="replace").rstrip())


class _LogFile(RotatingFileHandler):
    """Nobody waits for a log: where its disk is full, the terminal hears so once, and the server goes on."""

    failed = False

    def _open(self) -> TextIOWrapper:
        """For its owner's eyes, whatever the umask; so each file that is begun when one is full."""
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_private)

    def write(self, text: str) -> None:
        self.handle(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            print(f"loreloop: the log {self.baseFilename} cannot be written: {sys.exception()}", file=sys.stderr)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
