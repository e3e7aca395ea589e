"""Fuzzed targets: what failed once, and some cases of each; `make fuzz CASES=…` runs as many as there is time for."""

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loreloop.formats.gguf_header import check_header
from loreloop.protocol.errors import BadRequest
from tests.fuzz.targets import TARGETS, close


def gguf_head(*entries: bytes, n_entries: int | None = None, n_tensors: int = 0) -> bytes:
    n = len(entries) if n_entries is None else n_entries
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n) + b"".join(entries)


def entry(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


# A list of 2^60 numbers, which a library read for ever.
ENDLESS_LIST = gguf_head(entry(9, struct.pack("<IQ", 4, 1 << 60)))
FAILED_ONCE = [("gguf", ENDLESS_LIST)]
HEADS_THAT_CANNOT_BE = {
    "empty": b"",
    "another-magic": b"GGUX" + bytes(40),
    "cut": b"GGUF\x03",
    "endless-list": ENDLESS_LIST,
    "endless-texts": gguf_head(entry(9, struct.pack("<IQ", 8, 1 << 60))),
    "endless-entries": gguf_head(n_entries=1 << 60),
    "endless-tensors": gguf_head(n_tensors=1 << 60),
    "a-long-text": gguf_head(entry(8, struct.pack("<Q", 1 << 62))),
    "a-kind-that-is-none": gguf_head(entry(77, b"")),
    "nested-lists": gguf_head(entry(9, struct.pack("<IQ", 9, 1) * 1000)),
    "many-dimensions": gguf_head(n_tensors=1) + struct.pack("<QI", 0, 1 << 31),
}


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    close()


@pytest.mark.parametrize("name", TARGETS)
def test_cases_drawn_by_chance_do_not_fail(name: str) -> None:
    chance, target = random.Random(23), TARGETS[name]
    for seed in target.seeds():
        target.check(seed)
    for _ in range(100 if target.slow else 300):
        case = bytearray(chance.choice(target.seeds())) if chance.random() < 0.5 else bytearray(chance.randbytes(300))
        for _ in range(min(len(case), 3)):
            case[chance.randrange(len(case))] = chance.randrange(256)
        target.check(bytes(case))


@pytest.mark.parametrize(("name", "case"), FAILED_ONCE, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FAILED_ONCE)])
def test_what_failed_once_does_not(name: str, case: bytes) -> None:
    TARGETS[name].check(case)


@pytest.mark.parametrize("kind", HEADS_THAT_CANNOT_BE)
def test_a_gguf_head_that_claims_more_than_its_file_holds_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(HEADS_THAT_CANNOT_BE[kind])
    with pytest.raises(BadRequest, match=r"model\.gguf cannot be read as a GGUF file"):
        check_header(file)


def test_a_gguf_head_that_fits_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for seed in (TARGETS["gguf"].seeds()[0], gguf_head(entry(9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 0)))):
        file.write_bytes(seed)
        check_header(file)


@pytest.mark.slow
def test_guided_cases_do_not_fail(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--target", "routes", "--cases", "400", "--place", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "and none failed" in done.stdout
