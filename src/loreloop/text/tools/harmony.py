"""Reads replies in the harmony format of gpt-oss: messages on channels, of which one thinks, one calls and one answers.

    <|channel|>analysis<|message|>a thought<|end|><|start|>assistant<|channel|>final<|message|>the answer<|return|>
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"city": "Oslo"}<|call|>

The prompt has written the first `<|start|>assistant`. Text in, pieces out, however it is cut. It knows no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from loreloop.text.tools.json_scan import strict_json
from loreloop.text.tools.stream_reader import Markers, Steps, StreamReader
from loreloop.text.tools.tool_calls import Broken, CallArguments, CallBegins, CallEnds, Content, Piece, Thinking

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
FUNCTIONS = "functions."
THOUGHTS = "analysis"

_RECIPIENT = re.compile(r"to=([^\s<]+)")
_BODY_ENDS = Markers(END, CALL, RETURN, START)
_HEADER_ENDS = Markers(MESSAGE, END, CALL, RETURN)
_ROLE_ENDS = Markers(CHANNEL, MESSAGE, START)
_STRAY_ENDS = Markers(CHANNEL, START, MESSAGE, END, CALL, RETURN)


class HarmonyReader:
    """Channels become thoughts, content and calls. Without `tools_allowed` what is addressed to a function is content.

    A call whose arguments are no JSON object comes whole as `Broken`, and gets no `CallEnds`.
    """

    def __init__(self, *, tools_allowed: bool) -> None:
        self.tools_allowed = tools_allowed
        self.reader = StreamReader()
        self.pieces: list[Piece] = []
        self.n_begun = 0
        self.said: set[type[Content | Thinking]] = set()
        self.steps: Generator[None, None, None] = self._messages()

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

    def _messages(self) -> Steps[None]:
        role = ""
        while True:
            if (yield from self.reader.begins(START)):
                # The recipient may stand behind the role as well as behind the channel.
                role, _ = yield from self._header(_ROLE_ENDS)
            if (yield from self.reader.begins(CHANNEL)):
                channel, whole = yield from self._header(_HEADER_ENDS)
                if not whole:
                    return
                yield from self._body(role, channel)
                role = ""
            elif (yield from self.reader.begins(MESSAGE)):
                yield from self._body(role, "")
            # A model that writes no channel at all is taken at its word.
            elif not (yield from self._passed(_STRAY_ENDS, Content)):
                return
            else:
                yield from self._ended()

    def _header(self, ends: Markers) -> Steps[tuple[str, bool]]:
        """What stands before the next marker, and whether that came; a message's own marker is read as well."""
        read: list[str] = []
        while True:
            stop, marker = self.reader.search(ends)
            read.append(self.reader.text[self.reader.position : stop])
            self.reader.position = stop
            if marker:
                return "".join(read), ends is not _HEADER_ENDS or (yield from self.reader.begins(MESSAGE))
            if not (yield from self.reader.more()):
                return "".join(read), False

    def _body(self, role: str, channel: str) -> Steps[None]:
        recipient = _RECIPIENT.search(channel) or _RECIPIENT.search(role)
        if recipient and recipient[1].startswith(FUNCTIONS) and self.tools_allowed:
            yield from self._call(recipient[1].removeprefix(FUNCTIONS))
        else:
            kind = Thinking if channel.split(maxsplit=1)[:1] == [THOUGHTS] else Content
            if kind in self.said:
                self.pieces.append(kind("\n\n"))  # two messages of one kind, which clients get as one
            yield from self._passed(_BODY_ENDS, kind)
        yield from self._ended()

    def _ended(self) -> Steps[None]:
        """Reads the end of a message if it stands here."""
        for marker in (END, CALL, RETURN):
            if (yield from self.reader.begins(marker)):
                return

    def _call(self, name: str) -> Steps[None]:
        self.pieces.append(CallBegins(self.n_begun, None, name))
        self.n_begun += 1
        read: list[str] = []
        while True:
            stop, marker = self.reader.search(_BODY_ENDS)
            if text := self.reader.text[self.reader.position : stop]:
                read.append(text)
                self.pieces.append(CallArguments(self.n_begun - 1, text))
            self.reader.position = stop
            if marker or not (yield from self.reader.more()):
                break
        arguments = "".join(read)
        try:
            valid = isinstance(strict_json(arguments), dict)
        except ValueError:
            valid = False
        # A call's own end is a token that ends the reply, and so is hidden: only the arguments tell a whole one.
        self.pieces.append(
            CallEnds(self.n_begun - 1) if valid else Broken(arguments, len(arguments), self.reader.ended)
        )

    def _passed(self, markers: Markers, kind: type[Content | Thinking]) -> Steps[str]:
        """Passes text on up to a marker, and returns that; at the end an empty string."""
        while True:
            stop, marker = self.reader.search(markers)
            text = self.reader.text[self.reader.position : stop]
            self.reader.position = stop
            if text:
                self.pieces.append(kind(text))
                self.said.add(kind)
            if marker:
                return marker
            if not (yield from self.reader.more()):
                if rest := self.reader.text[self.reader.position :]:
                    self.pieces.append(kind(rest))
                self.reader.position = len(self.reader.text)
                return ""
