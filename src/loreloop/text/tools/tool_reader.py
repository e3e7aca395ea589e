"""Reads a model's reply while it comes: text in, pieces of content, thoughts and tool calls out.

Half a marker is never shown, a name waits until it is whole, arguments stream as they come where the name precedes
them. How the text was cut makes no difference to what the pieces say together. It knows no tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence

from loreloop.text.answers import THINK
from loreloop.text.tools import xml_calls
from loreloop.text.tools.json_scan import JsonScan, strict_json
from loreloop.text.tools.stream_reader import Markers, NotACall, Steps, StreamReader
from loreloop.text.tools.tool_calls import Broken, CallArguments, CallBegins, CallEnds, Content, Piece, Thinking, Tool
from loreloop.text.tools.tool_formats import ToolFormat

CALL_ID = "[CALL_ID]"  # of Mistral's, between a name and its arguments
MOST_OPENING = 64  # characters within which a message shows that it is a call
OPENINGS = ("<|python_tag|>", '{"name"', '{"type":"function"')  # of a message, without its white space

_KIMI_ID = re.compile(r"(?:functions\.)?(.+):\d+", re.DOTALL)


class ReplyReader:
    """`thinking`: <think> begins a thought, everywhere but in a call; `opened`: the prompt has written the first one.
    `tools` say which arguments are strings, in a format that does not.

    A broken call comes whole as `Broken`; pieces of it that came before are void, and it gets no `CallEnds`.
    """

    def __init__(
        self,
        form: ToolFormat,
        *,
        thinking: bool,
        tools_allowed: bool,
        opened: bool = False,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.form, self.tools = form, tools
        self.think = THINK[0] if thinking else ""
        self.reader = StreamReader()
        self.pieces: list[Piece] = []
        self.spaces: list[str] = []  # white space that is dropped if a marker follows
        self.fresh = False  # behind a marker, where white space is dropped
        self.has_content = False  # content, since the last call
        self.n_begun = 0
        self.n_told = 0  # characters of the call that is being read, up to the last piece told of it
        self.steps: Generator[None, None, None] = self._reply(opened, tools_allowed)

    def push(self, text: str) -> list[Piece]:
        """What can be said for certain now."""
        self.reader.push(text)
        next(self.steps, None)
        pieces, self.pieces = self.pieces, []
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, when no text follows."""
        self.reader.ended = True
        return self.push("")

    def _reply(self, opened: bool, tools_allowed: bool) -> Steps[None]:
        if self.think and opened:
            yield from self.reader.space()
            yield from self._thought()
        if not tools_allowed:
            while (yield from self._text(Content, Markers(self.think))):
                yield from self._thought()
        elif self.form.shape == "message":
            yield from self._message()
        else:
            yield from self._marked()

    def _thought(self) -> Steps[None]:
        """Reads one. Contents before and behind it stay as far apart as they are."""
        joins = self.has_content and not self.spaces
        if self.has_content:
            self._say_space(Content)
        self._forget_space()
        yield from self.reader.begins(self.think)
        yield from self._text(Thinking, Markers(THINK[1]))
        yield from self.reader.begins(THINK[1])
        self.spaces, self.fresh = [], not joins

    def _marked(self) -> Steps[None]:
        """Content with thoughts, and with calls between markers."""
        markers = Markers(*self.form.section, self.form.call[0], self.think)
        while marker := (yield from self._text(Content, markers)):
            if marker == self.form.call[0]:
                yield from self._call()
            elif marker == self.think:
                yield from self._thought()
            else:
                yield from self.reader.begins(marker)
                self._forget_space()
                if self.form.shape == "list":
                    yield from self._list()

    def _list(self) -> Steps[None]:
        """Calls as a JSON list."""
        sign = self.form.inside[0]
        while (yield from self._call(sign)):
            yield from self.reader.space()
            if (yield from self.reader.begins(self.form.inside[1])) or not (yield from self._sees(",")):
                return
            sign = ","

    def _sees(self, sign: str) -> Steps[bool]:
        while self.reader.position == len(self.reader.text):
            if not (yield from self.reader.more()):
                return False
        return self.reader.text[self.reader.position] == sign

    def _message(self) -> Steps[None]:
        """A message whose beginning, and what begins behind a thought, says whether it is made of calls."""
        while True:
            space = yield from self.reader.space()
            self.spaces += [] if self.fresh else space
            if (yield from self._opens()):
                yield from self._call()
                while (yield from self._another()):
                    yield from self._call()
            if not (yield from self._text(Content, Markers(self.think))):
                return
            yield from self._thought()

    def _opens(self) -> Steps[bool]:
        while True:
            head = self.reader.text[self.reader.position : self.reader.position + MOST_OPENING]
            dense = "".join(head.split())
            if dense.startswith(OPENINGS):
                return True
            # Bounded, so that an ordinary answer is not held back for longer than a call takes to show itself.
            undecided = len(head) < MOST_OPENING and any(opening.startswith(dense) for opening in OPENINGS)
            if not undecided or not (yield from self.reader.more()):
                return False

    def _another(self) -> Steps[bool]:
        """Reads what separates two calls of a message."""
        yield from self.reader.space()
        while (yield from self.reader.begins(";")):
            yield from self.reader.space()
        return self.reader.text.startswith("{", self.reader.position)

    def _text(self, kind: type[Content | Thinking], markers: Markers) -> Steps[str]:
        """Passes text on up to a marker, and returns that; at the end an empty string."""
        reader = self.reader
        while True:
            end, marker = reader.search(markers)
            self._say(kind, reader.text[reader.position : end])
            reader.position = end
            if marker:
                return marker
            if not (yield from reader.more()):
                self._say(kind, reader.text[reader.position :])
                reader.position = len(reader.text)
                self._say_space(kind)
                return ""

    def _say(self, kind: type[Content | Thinking], text: str) -> None:
        if self.fresh:
            text = text.lstrip()
        visible = text.rstrip()
        if visible:
            self.pieces.append(kind("".join([*self.spaces, visible])))
            self.spaces, self.fresh, self.has_content = [], False, self.has_content or kind is Content
        if len(visible) < len(text):
            self.spaces.append(text[len(visible) :])

    def _say_space(self, kind: type[Content | Thinking]) -> None:
        if space := "".join(self.spaces):
            self.pieces.append(kind(space))
        self.spaces = []

    def _forget_space(self) -> None:
        self.spaces, self.fresh = [], True

    def _call(self, sign: str = "") -> Steps[bool]:
        """Reads one call, behind a sign; False where it is none."""
        self.reader.mark()
        self.n_told = 0
        try:
            if self.form.call[0]:
                yield from self.reader.begins(self.form.call[0])
            if sign:
                yield from self.reader.expect(sign)
            yield from {
                "object": self._object,
                "message": self._tagged_object,
                "kimi": self._kimi,
                "deepseek": self._deepseek,
                "list": self._named_object,
                "named": self._named,
                "xml": self._xml,
            }[self.form.shape]()
        except NotACall:
            cut = self.reader.ended
            yield from self._to_the_end_of_the_call()
            self._say_space(Content)
            self.pieces.append(Broken(self.reader.unmark(), self.n_told, cut))
            self.fresh, self.has_content = False, True
            return False
        self.pieces.append(CallEnds(self.n_begun - 1))
        self.reader.unmark()
        self._forget_space()
        self.has_content = False
        return True

    def _to_the_end_of_the_call(self) -> Steps[None]:
        """Behind its end marker, or before the next one that is no part of a call."""
        reader, last = self.reader, self.form.call[1]
        markers = Markers(last, *self.form.section, self.form.call[0])
        while True:
            reader.position, marker = reader.search(markers)
            if marker:
                reader.position += len(marker) if marker == last else 0
                return
            if not (yield from reader.more()):
                reader.position = len(reader.text)
                return

    def _tagged_object(self) -> Steps[None]:
        if (yield from self.reader.begins(self.form.inner)):
            yield from self.reader.space()
        yield from self._named_object()

    def _object(self) -> Steps[None]:
        yield from self._named_object()
        yield from self.reader.ending(self.form.call[1])

    def _kimi(self) -> Steps[None]:
        call_id = (yield from self.reader.short(self.form.inner, self.form.call[0][:2])).strip()
        named = _KIMI_ID.fullmatch(call_id)
        if not named:
            raise NotACall
        yield from self._arguments(named[1], call_id)
        yield from self.reader.ending(self.form.call[1])

    def _deepseek(self) -> Steps[None]:
        reader = self.reader
        sign = self.form.call[0][:2]  # with which all markers begin
        name = (yield from reader.short(self.form.inner, sign)).strip()
        yield from reader.space()
        fenced = not (yield from self._sees_brace())
        if fenced:
            if name != "function":
                raise NotACall
            name = (yield from reader.short("\n", sign)).strip()
            yield from reader.expect("```json")
        yield from self._arguments(name)
        if not fenced or (yield from reader.ending("```")):
            yield from reader.ending(self.form.call[1])

    def _named(self) -> Steps[None]:
        name, _, call_id = (yield from self.reader.short(self.form.inner, self.form.call[0])).partition(CALL_ID)
        yield from self._arguments(name.strip(), call_id.strip() or None)

    def _xml(self) -> Steps[None]:
        reader = self.reader
        yield from reader.expect("<function=")
        name = (yield from reader.short(">", "<")).strip()
        if not name:
            raise NotACall
        self._begin(name)
        sign = "{"
        while (yield from reader.expect("<parameter=", "</function>")) == "<parameter=":
            key = yield from reader.short(">", "<")
            value = xml_calls.value_of(self.tools, name, key, (yield from self._until("</parameter>")))
            self._argue(sign + json.dumps({key: value}, ensure_ascii=False, allow_nan=False)[1:-1])
            sign = ", "
        self._argue("}" if sign == ", " else "{}")
        yield from reader.ending(self.form.call[1])

    def _until(self, end: str) -> Steps[str]:
        """Reads the text before `end`, however long, and `end`."""
        reader, read, markers = self.reader, list[str](), Markers(end)
        while True:
            stop, marker = reader.search(markers)
            read.append(reader.text[reader.position : stop])
            reader.position = stop + len(marker)
            if marker:
                return "".join(read)
            if not (yield from reader.more()):
                raise NotACall

    def _sees_brace(self) -> Steps[bool]:
        while self.reader.position == len(self.reader.text):
            if not (yield from self.reader.more()):
                raise NotACall
        return self.reader.text[self.reader.position] == "{"

    def _named_object(self) -> Steps[None]:
        """A name and arguments as keys of one object, in any order."""
        reader = self.reader
        name = arguments = early = None
        yield from reader.expect("{")
        while True:
            key = yield from reader.string()
            yield from reader.expect(":")
            if key == "name" and name is None:
                name = yield from reader.string()
            elif key in ("arguments", "parameters") and arguments is None:
                arguments = yield from self._arguments(name)
                # Arguments before their name cannot be streamed: pieces of a call begin with its name.
                early = name is None
            elif key == "id" and self.form.shape == "list":
                yield from reader.string()
            elif key != "type" or (yield from reader.string()) != "function":
                raise NotACall
            if (yield from reader.expect(",", "}")) == "}":
                break
        if not name or arguments is None:
            raise NotACall
        if early:
            self._begin(name)
            self._argue(arguments)

    def _arguments(self, name: str | None, call_id: str | None = None) -> Steps[str]:
        """Reads a JSON object, and streams it if the name is known."""
        reader, scan, read = self.reader, JsonScan(), list[str]()
        yield from reader.space()
        if not (yield from self._sees_brace()) or name == "":
            raise NotACall
        if name:
            self._begin(name, call_id)
        while not scan.done:
            begin, reader.position = reader.position, scan.scan(reader.text, reader.position)
            if reader.position > begin:
                read.append(reader.text[begin : reader.position])
                if name:
                    self._argue(read[-1])
            if scan.broken or (not scan.done and not (yield from reader.more())):
                raise NotACall
        try:
            # The scan above finds the end alone; whether it is JSON that can be passed on shows only here.
            strict_json("".join(read))
        except ValueError:
            raise NotACall from None
        return "".join(read)

    def _begin(self, name: str, call_id: str | None = None) -> None:
        self.pieces.append(CallBegins(self.n_begun, call_id, name))
        self.n_begun, self.n_told = self.n_begun + 1, self.reader.n_read

    def _argue(self, text: str) -> None:
        self.pieces.append(CallArguments(self.n_begun - 1, text))
        self.n_told = self.reader.n_read
