"""One sample of a chat as it is read: tokens in, pieces of a reply out, and the pieces put together.

Knows no dialect's bodies, no requests, and not how a model's family writes tool calls.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from loreloop.protocol.sampling import Thoughts
from loreloop.text.answers import THINK, parts_of
from loreloop.text.conversation import Conversation, template_of
from loreloop.text.streaming_detokenizer import StreamingDetokenizer
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tools.call_buffer import CallBuffer
from loreloop.text.tools.harmony import HarmonyReader
from loreloop.text.tools.tool_calls import (
    Broken,
    CallArguments,
    CallBegins,
    CallCut,
    CallEnds,
    Content,
    Piece,
    Thinking,
    Tool,
)
from loreloop.text.tools.tool_formats import ToolFormat, format_of
from loreloop.text.tools.tool_reader import ReplyReader

BROKEN_CALL = "What looks like a tool call in the content could not be read as one."
CUT_CALL = "The last tool call was cut off before its end; its arguments are not whole."


@dataclass(frozen=True)
class ReplyRules:
    """What decides how the samples of one prompt are read."""

    tokenizer: TextTokenizer
    form: ToolFormat
    thinking: bool  # the model thinks
    opened: bool  # the prompt ends inside a thought
    tools: tuple[Tool, ...] = ()  # that the reply may call
    stop_tokens: Collection[int] = ()
    stop_strings: tuple[str, ...] = ()
    at_once: bool = False  # calls are by a grammar, and told while they are written

    @property
    def thoughts(self) -> Thoughts:
        """What is known of thoughts in a reply, by which stop strings inside a thought are told apart."""
        return "opened" if self.opened else "possible" if self.thinking else "none"

    def begin(self, collected: WholeReply | None = None) -> Reply:
        """A reader for one sample; each sample needs its own."""
        # These are special tokens that must become text nevertheless, since the reader looks for them.
        shown = (*self.form.markers, *THINK)
        parts = parts_of(self.thoughts)
        detokenizer = StreamingDetokenizer(self.tokenizer, self.stop_tokens, self.stop_strings, shown, parts)
        allowed = bool(self.tools)
        reader: ReplyReader | HarmonyReader
        if self.form.shape == "harmony":
            reader = HarmonyReader(tools_allowed=allowed)
        else:
            reader = ReplyReader(
                self.form, thinking=self.thinking, tools_allowed=allowed, opened=self.opened, tools=self.tools
            )
        return Reply(detokenizer, reader, CallBuffer(at_once=self.at_once), collected)


def rules_of(tokenizer: TextTokenizer, template: ChatTemplate, conversation: Conversation, prompt: str) -> ReplyRules:
    """How replies to a conversation are read, whose prompt is the text given; what ends them is not known here."""
    # Some models bring a template of their own for conversations with tools.
    source = template_of(template, conversation).source
    thinking = THINK[0] in (source or "")
    # A template may open the thought itself, and then the answer begins inside of it.
    opened = thinking and prompt.rstrip().endswith(THINK[0])
    return ReplyRules(
        tokenizer=tokenizer, form=format_of(source), thinking=thinking, opened=opened, tools=conversation.tools
    )


class Reply:
    """One sample on its way: tokens in, pieces out, none of which is taken back. Every call has an id."""

    def __init__(
        self,
        detokenizer: StreamingDetokenizer,
        reader: ReplyReader | HarmonyReader,
        call_buffer: CallBuffer,
        collected: WholeReply | None = None,
    ) -> None:
        self.detokenizer, self.reader, self.call_buffer, self.collected = detokenizer, reader, call_buffer, collected

    def push(self, token: int) -> list[Piece]:
        """The pieces that one more token completes; often none."""
        text = self.detokenizer.push(token)
        return self._told(self.reader.push(text)) if text else []

    def flush(self) -> list[Piece]:
        """The pieces that were held back, once the sample has ended."""
        return self._told([*self.reader.push(self.detokenizer.flush()), *self.reader.flush()])

    def _told(self, found: list[Piece]) -> list[Piece]:
        pieces = [named(piece) for piece in self.call_buffer.settle(found)]
        if self.collected is not None:
            self.collected.add(pieces)
        return pieces


def named(piece: Piece) -> Piece:
    """The piece, with an id of our own where a call came without one."""
    if isinstance(piece, CallBegins) and piece.call_id is None:
        return replace(piece, call_id=new_call_id())
    return piece


@dataclass
class WholeCall:
    """A tool call of a whole reply; `arguments` is its JSON as the model wrote it."""

    call_id: str | None
    name: str
    arguments: str = ""


@dataclass
class WholeReply:
    """A reply's pieces put together; a broken call counts as content. `warning` says what is wrong with its calls,
    behind `note`, which was known before."""

    content: str = ""
    thinking: str = ""
    calls: list[WholeCall] = field(default_factory=list)
    cut: bool = False  # the last call was
    is_open: bool = False  # the last call has begun and not ended
    note: str | None = None
    warning: str | None = None

    def __post_init__(self) -> None:
        self.warning = self.note

    def add(self, pieces: Sequence[Piece]) -> None:
        """Takes further pieces, in their order."""
        for piece in pieces:
            match piece:
                case Content(text):
                    self.content += text
                case Thinking(text):
                    self.thinking += text
                case CallBegins(_, call_id, name):
                    self.calls.append(WholeCall(call_id, name))
                    self.is_open = True
                case CallArguments(index, text):
                    self.calls[index].arguments += text
                case CallCut():
                    self.cut, self.is_open = True, False
                    self.warning = with_note(self.note, CUT_CALL)
                case Broken(text):
                    self.content += text
                    self.warning = with_note(self.note, BROKEN_CALL)
                case CallEnds():
                    self.is_open = False


def read_whole(reply: Reply, tokens: Sequence[int], note: str | None = None) -> WholeReply:
    """The reply of a finished sample, from its token ids; `reply` has read nothing yet."""
    whole = WholeReply(note=note)
    for token in tokens:
        whole.add(reply.push(token))
    whole.add(reply.flush())
    return whole


def with_note(note: str | None, warning: str) -> str:
    """A warning, behind the note that was known before if there is one."""
    return f"{note} {warning}" if note else warning


def new_call_id() -> str:
    """An id for a call whose model gave it none, in the form that OpenAI's clients expect."""
    return f"call_{uuid.uuid4().hex[:24]}"
