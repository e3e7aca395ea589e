"""`loreloop memory chat`, `show` and `forget` on memories of a data folder."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result

from loreloop.cli import chat as plain_chat
from loreloop.cli import memory as command
from loreloop.cli import memory_chat, memory_inputs
from loreloop.memory.file_store import FileStore
from loreloop.memory.persistence import from_json, to_json
from loreloop.memory.picture import runs, turn_runs, turns_by_fate
from loreloop.memory.state import MemoryState, Segment
from loreloop.protocol.errors import BadRequest, NotFound
from tests.memory.test_chat import Server

HOSTILE = "</title><script>alert('x & y')</script> \x1b[2J \x00 done"
SEGMENTS = (
    Segment(0, "system: ", "Answer in Danish.", 10, (0,), "system", pinned=True),
    Segment(1, "user: ", HOSTILE, 20, (1,), "user"),
    Segment(2, "user: ", "locker code 4711", 30, (2,), "user", form="condensed", rewrites=1),
    Segment(3, "user: ", "They met Odin.", 20, (3, 4), "user", form="written", rewrites=2),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    state = MemoryState(100, SEGMENTS, n_turns=5, next_id=4)
    FileStore(tmp_path / "memories").save("ann", to_json(state), after=0)
    return tmp_path


def invoke(data: Path, *arguments: str, **more: Any) -> Result:
    whole = [*arguments, "--data", str(data)]
    return CliRunner().invoke(command.memory, whole, catch_exceptions=False, **more)


def test_show_draws_the_segments_in_their_colours(data: Path) -> None:
    output = invoke(data, "show", "ann", color=True).output
    bar = output.splitlines()[0]
    colours = {"\x1b[35m": "■" * 8, "\x1b[32m": "█" * 16, "\x1b[33m": "▓" * 24, "\x1b[36m": "▒" * 16}
    assert bar == "".join(f"{code}{cells}\x1b[0m" for code, cells in colours.items()) + f"\x1b[37m{'·' * 16}\x1b[0m"
    assert "\x1b[2J" not in output
    assert "\x00" not in output
    assert "80 of 100 tokens; 5 turns seen." in output
    assert "3, 4" in output
    rows = json.loads(invoke(data, "show", "ann", "--json").output)
    assert [row["kind"] for row in rows] == ["pinned", "kept", "condensed", "written"]
    assert rows[1]["text"] == "user: " + HOSTILE


def test_the_picture_is_clean_xml_of_the_same_proportions(data: Path, tmp_path: Path) -> None:
    invoke(data, "show", "ann", "--svg", str(tmp_path / "bar.svg"))
    root = ElementTree.fromstring((tmp_path / "bar.svg").read_text())
    assert {element.tag.split("}")[1] for element in root.iter()} == {"svg", "rect", "title", "text"}
    drawn = [rect for rect in root if len(rect)]
    assert [float(rect.attrib["width"]) for rect in drawn] == pytest.approx([96, 192, 288, 192, 192, *[192] * 3, 384])
    assert "<script>alert('x & y')</script>" in str(drawn[1][0].text)


def test_show_without_an_id_lists_the_memories(data: Path, tmp_path: Path) -> None:
    FileStore(data / "memories").save("b.ob/1", to_json(MemoryState(70)), after=0)
    assert json.loads(invoke(data, "show", "--json").output) == [
        {"id": "ann", "tokens": 80, "budget": 100, "turns": 5},
        {"id": "b.ob/1", "tokens": 0, "budget": 70, "turns": 0},
    ]
    assert "begins one" in invoke(tmp_path / "nowhere", "show").output
    assert not (tmp_path / "nowhere").exists()


def test_cells_follow_the_tokens() -> None:
    state = msgspec.structs.replace(MemoryState(100), segments=SEGMENTS)
    assert [(run.kind.name, run.cells) for run in runs(state, 10)] == [
        ("pinned", 1),
        ("kept", 2),
        ("condensed", 3),
        ("written", 2),
        ("free", 2),
    ]


def test_turns_are_drawn_too_those_that_were_dropped_among_them() -> None:
    state = msgspec.structs.replace(MemoryState(100), segments=SEGMENTS, n_turns=1000, next_id=1000)
    assert [(run.kind.name, run.cells) for run in turn_runs(state, 100)] == [("dropped", 100)]
    assert [(run.kind.name, run.cells) for run in turn_runs(state, 1000)] == [
        *(("pinned", 1), ("kept", 1), ("condensed", 1), ("written", 2), ("dropped", 995))
    ]
    assert turns_by_fate(state) == {"kept": 1, "condensed": 1, "written": 2, "pinned": 1, "dropped": 995}
    assert turn_runs(MemoryState(100), 80) == []


def test_forget_says_what_went_and_saves(data: Path) -> None:
    assert "locker code 4711" in invoke(data, "forget", "ann", "--pattern", "my locker code").output
    rows = json.loads(invoke(data, "forget", "ann", "--turn", "4", "--json").output)
    assert [row["turns"] for row in rows] == [[3, 4]]
    saved = FileStore(data / "memories").load("ann")
    assert saved is not None
    assert [segment.id for segment in from_json(saved.data).segments] == [0, 1]
    assert "nothing was changed" in invoke(data, "forget", "ann", "--turn", "4").output
    assert FileStore(data / "memories").load("ann") == saved


def test_resize_gives_another_budget_and_saves(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_inputs, "counter", lambda _data_dir, _model: lambda text: len(text.split()))
    assert "now 80 of 300 in 4" in invoke(data, "resize", "ann", "--budget", "300").output
    assert "now 64 of 70 in 4" in invoke(data, "resize", "ann", "--budget", "70").output
    saved = FileStore(data / "memories").load("ann")
    assert saved is not None
    state = from_json(saved.data)
    assert (state.budget, state.segments[0]) == (70, SEGMENTS[0])
    with pytest.raises(BadRequest, match="pinned"):
        invoke(data, "resize", "ann", "--budget", "9")
    assert FileStore(data / "memories").load("ann") == saved


def test_unknown_memories_and_turns_are_named_and_leave_no_trace(data: Path, tmp_path: Path) -> None:
    for arguments in (("show", "bob"), ("forget", "bob", "--turn", "1"), ("forget", "ann", "--turn", "9")):
        with pytest.raises(NotFound, match=r"bob|Turn 9"):
            invoke(data, *arguments)
    with pytest.raises(BadRequest, match="either"):
        invoke(data, "forget", "ann")
    with pytest.raises(NotFound):
        invoke(tmp_path / "nowhere", "show", "ann")
    assert not (tmp_path / "nowhere").exists()


def test_a_chat_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({"content": "I noted it."}, {"content": "It is 4711."}, 500)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        return server(request)

    def client_of(_url: str, _key: str) -> httpx.Client:
        return httpx.Client(base_url="http://any.example/v1", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(plain_chat, "client_of", client_of)
    for module in (memory_chat, memory_inputs):
        monkeypatch.setattr(module, "counter", lambda _data_dir, _model: lambda text: len(text.split()))
    assert "I noted it." in invoke(tmp_path, "chat", "ann", input="My locker code is 4711.\n/quit\n").output
    invoke(tmp_path, "resize", "ann", "--budget", "900")
    told = invoke(tmp_path, "chat", "ann", input="What is it?\n").output  # with its own budget, not a new one's
    assert "It is 4711." in told
    assert "of 900 tokens" in told
    assert "user: My locker code is 4711." in server.messages[0]["content"]
    failed = invoke(tmp_path, "chat", "ann", input="And now?\n")
    assert failed.exit_code == 1
    saved = FileStore(tmp_path / "memories").load("ann")
    assert saved is not None
    assert from_json(saved.data).n_turns == 4
