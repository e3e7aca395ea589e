"""Timelines, read with Google's protobuf by the field numbers of Perfetto's schema, and laid out as that asks."""

import time
from collections import defaultdict
from typing import Any

import hypothesis.strategies as st
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given

from loreloop.protocol.perfetto import Slice, Track, trace

U64, U32, TEXT, ENUM, MESSAGE = 4, 13, 9, 14, 11  # descriptor_pb2's types
# Fields by number of Perfetto's trace.proto, trace_packet.proto, track_descriptor.proto, track_event.proto and
# debug_annotation.proto; END events come as enumeration numbers.
SCHEMA: dict[str, dict[int, tuple[str, int, str]]] = {
    "Trace": {1: ("packet", MESSAGE, "Packet")},
    "Packet": {
        8: ("timestamp", U64, ""),
        10: ("trusted_packet_sequence_id", U32, ""),
        11: ("track_event", MESSAGE, "Event"),
        60: ("track_descriptor", MESSAGE, "Descriptor"),
    },
    "Descriptor": {1: ("uuid", U64, ""), 2: ("name", TEXT, ""), 5: ("parent_uuid", U64, "")},
    "Event": {
        4: ("debug_annotations", MESSAGE, "Annotation"),
        9: ("type", U32, ""),
        11: ("track_uuid", U64, ""),
        22: ("categories", TEXT, ""),
        23: ("name", TEXT, ""),
    },
    "Annotation": {6: ("string_value", TEXT, ""), 10: ("name", TEXT, "")},
}
REPEATED = {"packet", "debug_annotations", "categories"}


def reader() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="timeline.proto", package="t", syntax="proto2")
    for message, fields in SCHEMA.items():
        made = file.message_type.add(name=message)
        for number, (name, kind, of) in fields.items():
            field = made.field.add(name=name, number=number, type=kind, label=3 if name in REPEATED else 1)
            if of:
                field.type_name = f".t.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Trace"))


READER = reader()
TIMES = st.integers(0, 30).map(float)
SLICES = st.lists(st.builds(Slice, st.sampled_from("ab"), st.just("c"), TIMES, TIMES), max_size=40)


def played(content: bytes) -> dict[int, list[tuple[int, int, str]]]:
    """Slices by track as a viewer finds them: in the order of their times, each END closing what was begun last."""
    packets = READER.FromString(content).packet
    known = {each.track_descriptor.uuid for each in packets if each.HasField("track_descriptor")}
    events = [each for each in packets if each.HasField("track_event")]
    assert {each.track_event.track_uuid for each in events} <= known
    found, under_way = defaultdict(list), defaultdict(list)
    for each in sorted(events, key=lambda one: one.timestamp):  # which keeps the file's order among equal times
        track = each.track_event.track_uuid
        if each.track_event.type == 1:
            assert not under_way[track], "slices of one line lie apart"
            under_way[track].append(each)
        else:
            begun = under_way[track].pop()
            found[track].append((begun.timestamp, each.timestamp, begun.track_event.name))
    assert not any(under_way.values())
    return found


@given(SLICES)
def test_every_slice_is_drawn_whole(slices: list[Slice]) -> None:
    found = played(trace("all", [Track("one", tuple(slices))]))
    wanted = [(int(s.begin * 1e9), int(max(s.begin, s.end) * 1e9), s.name) for s in slices]
    assert sorted(each for line in found.values() for each in line) == sorted(wanted)
    # As few lines as can be: so many of them are under way at one time.
    edges = sorted([(s.begin, 1) for s in slices if s.end > s.begin] + [(s.end, -1) for s in slices if s.end > s.begin])
    deepest = most = 0
    for _, change in edges:
        deepest += change
        most = max(most, deepest)
    assert most <= len(found) <= max(most + 1, 1)


def test_names_parents_and_notes_are_where_a_viewer_looks() -> None:
    content = trace("all of it", [Track("r", (Slice("step", "training", 1.0, 2.0, {"state": "ended"}),))])
    title, track, line, begin, end = READER.FromString(content).packet
    assert (title.track_descriptor.name, track.track_descriptor.name) == ("all of it", "r")
    assert track.track_descriptor.parent_uuid == title.track_descriptor.uuid
    assert line.track_descriptor.parent_uuid == track.track_descriptor.uuid
    event = begin.track_event
    assert (event.name, list(event.categories), event.type, begin.timestamp) == ("step", ["training"], 1, 10**9)
    assert [(note.name, note.string_value) for note in event.debug_annotations] == [("state", "ended")]
    assert (end.track_event.type, end.timestamp) == (2, 2 * 10**9)


@pytest.mark.timed
def test_much_that_overlaps_takes_time_by_its_number() -> None:
    def seconds(n: int) -> float:
        slices = tuple(Slice("s", "c", float(number), 1e6) for number in range(n))
        began = time.process_time()
        trace("all", [Track("one", slices)])
        return time.process_time() - began

    seconds(500)
    assert seconds(16_000) < 8 * max(seconds(4000), 0.01), "four times as many; by the square it would be 16 times"
