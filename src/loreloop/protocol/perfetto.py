"""A timeline in the form of Perfetto: tracks with slices, as protobuf packets that its viewer opens.

Field numbers are those of Perfetto's published schema (protos/perfetto/trace: trace_packet, track_event,
track_descriptor, debug_annotation), written by hand because a few fields of a large schema are needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import msgspec

PACKET, TIMESTAMP, SEQUENCE, TRACK_EVENT, TRACK_DESCRIPTOR = 1, 8, 10, 11, 60
DESCRIPTOR_UUID, DESCRIPTOR_NAME, DESCRIPTOR_PARENT = 1, 2, 5
EVENT_ANNOTATION, EVENT_TYPE, EVENT_TRACK, EVENT_CATEGORY, EVENT_NAME = 4, 9, 11, 22, 23
ANNOTATION_TEXT, ANNOTATION_NAME = 6, 10
BEGIN, END = 1, 2
NANOSECONDS = 1_000_000_000
SEQUENCE_ID = 1  # of the one writer


class Slice(msgspec.Struct, frozen=True):
    """Something that lasted, in seconds since the epoch, with what the viewer shows of it."""

    name: str
    category: str
    begin: float
    end: float
    notes: dict[str, str] = {}


class Track(msgspec.Struct, frozen=True):
    """A line of the viewer. Slices of it may overlap: they are laid out on as many lines as that needs."""

    name: str
    slices: tuple[Slice, ...]


def trace(title: str, tracks: Iterable[Track]) -> bytes:
    """The whole file."""
    packets = [_descriptor(1, title, None)]
    number = 1
    for track in tracks:
        number += 1
        parent = number
        packets.append(_descriptor(parent, track.name, 1))
        for line in _lines(track.slices):
            number += 1
            packets.append(_descriptor(number, track.name, parent))
            packets += [packet for each in line for packet in _events(number, each)]
    return b"".join(_bytes(PACKET, packet) for packet in packets)


def _lines(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices side by side where they overlap, since those of one line must lie within one another or apart."""
    lines: list[list[Slice]] = []
    free: list[tuple[float, int]] = []  # when each line is free again, and its index; a heap, the earliest first
    for each in sorted(slices, key=lambda one: (one.begin, one.end)):
        # A clock that was put back may have ended something before it began, which no viewer can draw.
        end = max(each.begin, each.end)
        if free and free[0][0] <= each.begin:
            index = free[0][1]
            heapq.heapreplace(free, (end, index))
        else:
            index = len(lines)
            lines.append([])
            heapq.heappush(free, (end, index))
        lines[index].append(msgspec.structs.replace(each, end=end))
    return lines


def _descriptor(uuid: int, name: str, parent: int | None) -> bytes:
    body = _number(DESCRIPTOR_UUID, uuid) + _text(DESCRIPTOR_NAME, name)
    if parent is not None:
        body += _number(DESCRIPTOR_PARENT, parent)
    return _number(SEQUENCE, SEQUENCE_ID) + _bytes(TRACK_DESCRIPTOR, body)


def _events(track: int, one: Slice) -> Iterator[bytes]:
    notes = b"".join(
        _bytes(EVENT_ANNOTATION, _text(ANNOTATION_NAME, name) + _text(ANNOTATION_TEXT, text))
        for name, text in one.notes.items()
    )
    named = _text(EVENT_CATEGORY, one.category) + _text(EVENT_NAME, one.name) + notes
    for moment, kind, rest in ((one.begin, BEGIN, named), (one.end, END, b"")):
        event = _number(EVENT_TYPE, kind) + _number(EVENT_TRACK, track) + rest
        stamp = _number(TIMESTAMP, int(moment * NANOSECONDS)) + _number(SEQUENCE, SEQUENCE_ID)
        yield stamp + _bytes(TRACK_EVENT, event)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
