"""What is fuzzed, each as a function of bytes that raises where something is wrong, with cases to begin from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loreloop.protocol.errors import BadRequest, TooLarge
from tests.fuzz.source import Source, as_json, made


@dataclass(frozen=True)
class Target:
    """`slow`: a case takes milliseconds, so that there are fewer of them."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]] = lambda: (b"", b"\x01" * 64)
    slow: bool = False


def protobuf(data: bytes) -> None:
    """The body of a pass."""
    from loreloop.protocol.codec import decode_pass

    with suppress(BadRequest):
        decode_pass(data)


def protobuf_seeds() -> list[bytes]:
    """Passes as clients send them."""
    import numpy as np

    from loreloop.protocol import wire_pb2 as wire
    from tests.http.site import passing

    sparse = passing("a:train:0", 2)
    tensor = sparse.data[0].loss_fn_inputs["weights"]
    tensor.CopyFrom(wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[3], dense=np.ones(3, "<f4").tobytes()))
    return [passing("a:train:0", 1).SerializeToString(), sparse.SerializeToString(), b"\x0a\xff\xff\xff\xff\x0f"]


def bodies(data: bytes) -> None:
    """JSON of every route, decoded as it is sent and as its type."""
    from loreloop.http.bodies import decode, decode_as_sent
    from loreloop.http.openapi import BODIES

    source = Source(data)
    kind = source.pick(sorted(BODIES.values(), key=lambda one: one.__name__))
    body = source.rest() if source.byte() % 2 else as_json(made(source, kind))
    for decoder in (decode, decode_as_sent):
        with suppress(BadRequest, TooLarge):
            decoder(body, kind)


def paths(data: bytes) -> None:
    """`tinker://` paths: what is read is written as it was, and names one folder."""
    from loreloop.protocol.paths import parse_path

    source = Source(data, ("tinker://", "weights", "sampler_weights", "external_weights", "/", "a:train:0", "..", "."))
    text = "".join(source.text() for _ in range(1 + source.byte() % 8))
    with suppress(BadRequest):
        path = parse_path(text)
        assert str(path) == text
        assert "/" not in path.name
        assert path.name not in (".", "..")


def stops(data: bytes) -> None:
    """Stop strings in a text that comes in pieces: nothing of them is shown, and what is shown is the text."""
    from loreloop.text.answers import AnswerParts
    from loreloop.text.stops import StopTrimmer

    source = Source(data, ("ab", "ba", "aab", "<think>", "</think>", " "))
    strings = [text for text in (source.text() for _ in range(1 + source.byte() % 3)) if text]
    pieces = [source.text() for _ in range(source.byte() % 16)]
    text, trimmer = "".join(pieces), StopTrimmer(strings)
    shown = "".join(trimmer.push(piece) for piece in pieces) + trimmer.flush()
    assert text.startswith(shown)
    assert not any(string in shown for string in strings)
    if trimmer.found is None:
        assert shown == text
    else:
        assert text[len(shown) :].startswith(trimmer.found)
    assert _answer(AnswerParts(opened=False), pieces) == _answer(AnswerParts(opened=False), list(text))


def _answer(parts: object, pieces: Sequence[str]) -> list[str]:
    """What is answer and what is thought, however it was cut."""
    found = [part for piece in pieces for part in parts.push(piece)] + parts.flush()  # type: ignore[attr-defined]
    return ["".join(part.text for part in found if part.answer is wanted) for wanted in (True, False)]


@cache
def _folder() -> Path:
    place = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="loreloop-fuzz-", dir=place if place.is_dir() else None))


def safetensors(data: bytes) -> None:
    """A file of tensors, as checkpoints and base models bring it."""
    from safetensors import SafetensorError

    from loreloop.formats.tensor_file import check_finite

    file = _folder() / "file.safetensors"
    file.write_bytes(data)
    with suppress(SafetensorError):
        check_finite(file)


def safetensors_seeds() -> list[bytes]:
    """Small files of each kind of number."""
    heads = [
        b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}}' % (name, n_bytes)
        for name, n_bytes in ((b"F32", 8), (b"BF16", 4), (b"F8_E4M3", 2), (b"I64", 16), (b"BOOL", 2), (b"U8", 2))
    ]
    return [len(head).to_bytes(8, "little") + head + bytes(16) for head in heads] + [b"\xff" * 16]


def gguf(data: bytes) -> None:
    """A GGUF file, converted as `models add` does it."""
    from loreloop.formats.gguf import convert

    file = _folder() / "file.gguf"
    file.write_bytes(data)
    with suppress(BadRequest):
        convert(file, _folder())


def gguf_seeds() -> list[bytes]:
    """A file with some of what a model says of itself, and one tensor."""
    import gguf as library
    import numpy as np

    file = _folder() / "seed.gguf"
    writer = library.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [file.read_bytes(), b"GGUF\x03\x00\x00\x00" + bytes(16)]


@cache
def _served() -> object:
    from tests.fuzz.served import Served

    return Served()


def routes(data: bytes) -> None:
    """A request to any route that reads a body, to a whole server with a fake engine."""
    _served().ask(data)  # type: ignore[attr-defined]


def close() -> None:
    """Ends what the targets have begun."""
    if _served.cache_info().currsize:
        _served().close()  # type: ignore[attr-defined]
        _served.cache_clear()


TARGETS = {
    "protobuf": Target(protobuf, protobuf_seeds),
    "bodies": Target(bodies),
    "paths": Target(paths),
    "stops": Target(stops),
    "safetensors": Target(safetensors, safetensors_seeds),
    "gguf": Target(gguf, gguf_seeds, slow=True),
    "routes": Target(routes, slow=True),
}
