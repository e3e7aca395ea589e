"""The loop on the server: the model answers, its calls of registered tools are made, and it goes on with their results,
until an answer without calls, a call of the caller's own tools, or a bound. Knows no dialect.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from loreloop.http.generation.chat import Chat, ChatRequest, chat_on
from loreloop.http.generation.requests import Model, all_drawn, followed, forget, start, unfailing
from loreloop.http.services import Services
from loreloop.mcp.toolbox import Bounds, Toolbox, ToolCaller, open_toolbox
from loreloop.protocol.errors import LoreloopError, ServerError, UserError
from loreloop.protocol.link import Token
from loreloop.protocol.sampling import SampleOp, SampleResult
from loreloop.protocol.token_ids import unpack_ids
from loreloop.protocol.training import Failure
from loreloop.store import tools as tool_rows
from loreloop.store.rows import ToolCallRecord, ToolServer
from loreloop.text.conversation import MadeCall, Turn
from loreloop.text.replies import WholeReply, new_call_id, with_note
from loreloop.text.tools.tool_calls import Broken, Content, Thinking

LOG = logging.getLogger(__name__)
UNMADE = "A bound of agent_loop was reached before the calls in this answer; they were not made."


@dataclass(frozen=True)
class Began:
    """The first answer is being drawn: nothing stood in its way."""

    chat: Chat


@dataclass(frozen=True)
class Called:
    """A registered tool is being called; `Returned` follows."""

    call: MadeCall


@dataclass(frozen=True)
class Returned:
    """The call has ended; `output` is what the tool gave, or why it gave nothing."""

    call: MadeCall
    output: str


@dataclass(frozen=True)
class Finished:
    """The last answer, whose calls, if it has any, are the caller's to make."""

    chat: Chat
    reply: WholeReply
    result: SampleResult
    made: tuple[Turn, ...] = ()  # what the server said and heard before it


AgentEvent = Began | Content | Thinking | Broken | Called | Returned | Finished
Draw = Callable[[SampleOp], AsyncGenerator[int | SampleResult, None]]  # tokens of one sample, at last its result


@dataclass
class AgentRun:
    """One request's loop: every answer and every call so far."""

    model: Model
    chat_request: ChatRequest
    draw: Draw
    ops: list[SampleOp] = field(default_factory=list)
    found: list[SampleResult] = field(default_factory=list)

    async def events(self, box: Toolbox) -> AsyncGenerator[AgentEvent, None]:
        """Everything that happens in the loop, in its order, up to the last answer. Raises what keeps an answer from
        being drawn."""
        turns, choice = self.chat_request.conversation.turns, self.chat_request.choice
        tools = (*self.chat_request.conversation.tools, *box.tools)
        while True:
            conversation = replace(self.chat_request.conversation, turns=turns, tools=tools)
            chat = await chat_on(
                self.model, replace(self.chat_request, conversation=conversation, choice=choice, collected=None)
            )
            # A call is made here when it is whole, and is text if it is cut off.
            chat = replace(chat, rules=replace(chat.rules, at_once=False))
            if not self.ops:
                yield Began(chat)
            self.ops.append(chat.op)
            reply, whole, result = chat.reply(), WholeReply(note=chat.warning), None
            # Closing the drawing also cancels it in the engine, when the loop ends in the middle of an answer.
            async with aclosing(self.draw(chat.op)) as drawn:
                async for item in drawn:
                    pieces = reply.flush() if isinstance(item, SampleResult) else reply.push(item)
                    whole.add(pieces)
                    for piece in pieces:
                        if isinstance(piece, Content | Thinking | Broken):
                            if self.chat_request.collected is not None:
                                self.chat_request.collected.add([piece])
                            yield piece
                    result = item if isinstance(item, SampleResult) else None
            assert result is not None, "a drawing ends with its result"
            self.found.append(result)
            # One call of the caller's own tools is enough to end the loop: the caller answers all calls of a turn at
            # once.
            all_registered = bool(whole.calls) and all(box.holds(call.name) for call in whole.calls)
            # The bounds are looked at between answers, so that an answer that has begun is always finished.
            if not all_registered or box.spent:
                if all_registered:
                    chat = replace(chat, warning=with_note(chat.warning, UNMADE))
                    whole.warning = with_note(whole.warning, UNMADE)
                yield Finished(chat, whole, result, turns[len(self.chat_request.conversation.turns) :])
                return
            # Some families write no ids; results must refer to their calls all the same.
            calls = tuple(MadeCall(call.call_id or new_call_id(), call.name, call.arguments) for call in whole.calls)
            # The model must see its own calls before their results, as in any conversation with tools.
            turns = (
                *turns,
                Turn(role="assistant", content=whole.content, thinking=whole.thinking or None, calls=calls),
            )
            for call in calls:
                yield Called(call)
                output = "No more calls are allowed." if box.spent else await box.call(call.name, call.arguments)
                turns = (*turns, Turn("tool", output, call_id=call.call_id))
                yield Returned(call, output)
            choice = "auto"  # what was forced has been done


def drawn_whole(served: Services, model: Model) -> Draw:
    """Waits for the whole sample."""

    async def draw(op: SampleOp) -> AsyncGenerator[int | SampleResult, None]:
        (result,) = await all_drawn(served, model, [op])
        for token in unpack_ids(result.sequences[0].tokens).tolist():
            yield token
        yield result

    return draw


def drawn_live(served: Services, model: Model) -> Draw:
    """Tokens as they come; raises where the sample fails."""

    async def draw(op: SampleOp) -> AsyncGenerator[int | SampleResult, None]:
        start(served, model, [op])
        try:
            async for _, item in followed(served, [op]):
                yield item.token if isinstance(item, Token) else unfailing(item)
        finally:
            forget(served, [op])

    return draw


@dataclass(frozen=True)
class Tools:
    """The registered servers that a request names."""

    servers: Sequence[ToolServer]
    bounds: Bounds
    caller: ToolCaller

    def open(self):  # type: ignore[no-untyped-def]
        """A context in which the tool servers are connected; it gives the toolbox."""
        return open_toolbox(self.servers, self.bounds, self.caller)


def tools_of(served: Services, model: Model, labels: Sequence[str], bounds: Bounds) -> Tools:
    """NotFound names a server that is not registered."""

    async def record(call: ToolCallRecord) -> None:
        await served.store.write(tool_rows.record, call)

    servers = [served.store.read(tool_rows.find, label) for label in dict.fromkeys(labels)]
    return Tools(servers, bounds, ToolCaller(model.owner, f"agent-{uuid.uuid4().hex}", record))


class LiveRun:
    """A run in a task of its own, because connections to tool servers must be closed by the task that opened them."""

    def __init__(self, run: AgentRun, tools: Tools) -> None:
        self.queue: asyncio.Queue[AgentEvent | Failure | None] = asyncio.Queue()
        self.begun: asyncio.Future[Began] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._work(run, tools))
        self.task.add_done_callback(self._over)

    async def first(self) -> Began:
        """Raises what stood in the way of the first answer; who no longer waits for it ends the run."""
        try:
            return await self.begun
        except asyncio.CancelledError:
            self.end()
            raise

    async def rest(self) -> AsyncIterator[AgentEvent | Failure]:
        """The events after the first answer has begun, as they come; a failure is the last of them."""
        while (event := await self.queue.get()) is not None:
            yield event

    def end(self) -> None:
        """Ends the run, however far it has come; to be called when nobody listens any more."""
        self.task.cancel()

    async def _work(self, run: AgentRun, tools: Tools) -> None:
        # In this order the events end before the connections close.
        async with tools.open() as box, aclosing(run.events(box)) as events:
            async for event in events:
                if not isinstance(event, Began):
                    self.queue.put_nowait(event)
                elif not self.begun.done():
                    self.begun.set_result(event)

    def _over(self, task: asyncio.Task[None]) -> None:
        # Not only `end` cancels: the library of tool servers does so when a connection breaks.
        stopped = ServerError("The loop over tools was stopped; ask again.")
        error = stopped if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, LoreloopError):
            LOG.error("the loop over tools failed", exc_info=error)
            error = ServerError("The loop over tools failed; the server's log says why.")
        if error is not None and not self.begun.done():
            self.begun.set_exception(error)
        elif error is not None:
            category = "user" if isinstance(error, UserError) else "server"
            self.queue.put_nowait(Failure(category, str(error)))
        # This ends `rest`, also where nothing has failed.
        self.queue.put_nowait(None)
