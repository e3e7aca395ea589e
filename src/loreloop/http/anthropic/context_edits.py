"""Edits of the context that Anthropic's clients ask for: old thoughts and old results of tools are left out.

Values in, values out; knows no bodies of answers but what it tells of the edits it made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loreloop.http.generation.chat import ChatRequest, prompt_length
from loreloop.http.generation.requests import Model, most_tokens
from loreloop.protocol.anthropic_rest import (
    ClearThinking,
    ClearToolUses,
    Compact,
    ContextManagement,
    ThinkingTurns,
    ToolUses,
)
from loreloop.protocol.errors import BadRequest, TooLong
from loreloop.text.conversation import Conversation, MadeCall, Turn

CLEARED = "[The result of this call was left out to save space.]"


@dataclass(frozen=True)
class Edited:
    """`applied`: what Anthropic's answers tell of each edit that changed something."""

    chat_request: ChatRequest
    applied: list[dict[str, Any]] = field(default_factory=list)


async def managed(model: Model, chat_request: ChatRequest, management: ContextManagement | None) -> Edited:
    """The request after all edits, in their order."""
    applied: list[dict[str, Any]] = []
    counted = Counted(model, chat_request.conversation)
    for edit in management.edits if management else ():
        if not await _is_due(counted, edit):
            continue
        if isinstance(edit, Compact):
            raise BadRequest(
                "The edit compact_20260112 of context_management is not served, and its trigger is reached: send a "
                "shorter history. clear_thinking_20251015 and clear_tool_uses_20250919 are served."
            )
        # Each edit sees the conversation as the edits before it have left it, as Anthropic's documentation has it.
        before = counted.conversation
        count = "cleared_thinking_turns" if isinstance(edit, ClearThinking) else "cleared_tool_uses"
        turns, n_cleared = _thoughtless(before, edit) if isinstance(edit, ClearThinking) else _resultless(before, edit)
        if not n_cleared:
            continue
        after = Counted(model, replace(before, turns=turns))
        # Counting the prompt before and after is the only exact way, since a template may render thoughts and results
        # in any form.
        n_tokens = await counted.length() - await after.length()
        least = edit.clear_at_least if isinstance(edit, ClearToolUses) else None
        if least is None or n_tokens >= least.value:
            counted = after
            kind = str(edit.__struct_config__.tag)
            applied.append({"type": kind, count: n_cleared, "cleared_input_tokens": n_tokens})
    return Edited(replace(chat_request, conversation=counted.conversation), applied)


@dataclass
class Counted:
    """A conversation whose prompt is made once at most, however many edits look at its length."""

    model: Model
    conversation: Conversation
    n_tokens: int | None = None

    async def length(self) -> int:
        """In tokens. That of a prompt far over the window is the most that is counted and one:
        an edit may bring it back."""
        if self.n_tokens is None:
            try:
                self.n_tokens = await prompt_length(self.model, self.conversation)
            except TooLong:
                self.n_tokens = most_tokens(self.model.info) + 1
        return self.n_tokens


async def _is_due(counted: Counted, edit: ClearThinking | ClearToolUses | Compact) -> bool:
    if isinstance(edit, ClearThinking):
        # Any other value of `keep` means that all thoughts stay.
        return isinstance(edit.keep, ThinkingTurns)
    if isinstance(edit.trigger, ToolUses):
        return sum(len(turn.calls) for turn in counted.conversation.turns) > edit.trigger.value
    if edit.trigger.value > most_tokens(counted.model.info):
        return False  # nobody counts so far
    return await counted.length() > edit.trigger.value


def _thoughtless(conversation: Conversation, edit: ClearThinking) -> tuple[tuple[Turn, ...], int]:
    """Without the thoughts of all but the newest turns that have any; a turn goes up to the user's next words."""
    assert isinstance(edit.keep, ThinkingTurns)
    turns = list(conversation.turns)
    n_seen = n_cleared = 0
    # From the newest turn backwards, because `keep` counts from there.
    for run in reversed(list(_turns_of_assistants(turns))):
        thoughtful = [index for index in run if turns[index].thinking]
        n_seen += bool(thoughtful)
        if thoughtful and n_seen > edit.keep.value:
            n_cleared += 1
            for index in thoughtful:
                turns[index] = replace(turns[index], thinking=None)
    return tuple(turns), n_cleared


def _turns_of_assistants(turns: Sequence[Turn]) -> Iterator[list[int]]:
    """Places of what an assistant said between two words of the user, results of tools not counted."""
    run: list[int] = []
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            run.append(index)
        elif turn.role == "user":
            yield run
            run = []
    yield run


def _resultless(conversation: Conversation, edit: ClearToolUses) -> tuple[tuple[Turn, ...], int]:
    """Without the results, and where that is wanted the arguments, of all but the newest calls."""
    calls = [call for turn in conversation.turns for call in turn.calls if call.name not in (edit.exclude_tools or ())]
    # Calls are counted over the whole conversation, so the newest ones stay wherever their turns are.
    old = {call.call_id: call.name for call in calls[: max(0, len(calls) - edit.keep.value)]}
    inputs = edit.clear_tool_inputs

    def cleared(call: MadeCall) -> MadeCall:
        wanted = inputs is True or (isinstance(inputs, tuple) and call.name in inputs)
        return replace(call, arguments="{}") if wanted and call.call_id in old else call

    turns: list[Turn] = []
    n_cleared = 0
    for turn in conversation.turns:
        # A result that an earlier request has cleared is not counted again: clients send the whole history each time.
        if turn.role == "tool" and turn.call_id in old and turn.content != CLEARED:
            turn, n_cleared = replace(turn, content=CLEARED, parts=()), n_cleared + 1
        turns.append(replace(turn, calls=tuple(cleared(call) for call in turn.calls)))
    return tuple(turns), n_cleared
