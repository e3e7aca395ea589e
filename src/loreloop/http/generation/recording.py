"""The turns of one request on their way to the recorder: ids that go out, tokens that were shown, answers that ended.

What costs time (messages in their wire form, redaction, packing) is done later, in the recorder's thread. Knows no
dialect's bodies.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from loreloop.deployments.model_names import Deployed
from loreloop.host.recorder import Recorder, Waiting
from loreloop.http.generation.chat import Chat, finish_of
from loreloop.http.generation.marks import EPISODE, Marks
from loreloop.http.generation.requests import Model
from loreloop.http.services import now
from loreloop.protocol.link import Token
from loreloop.protocol.sampling import SampledSequence
from loreloop.protocol.token_ids import Logprobs, TokenIds, join_ids, pack_ids, pack_logprobs, unpack_ids
from loreloop.protocol.training import Chunk, ImageChunk, TextChunk, length_of
from loreloop.store.turn_bodies import NewTurn, TurnBody, packed
from loreloop.text.conversation import Conversation, MadeCall, Picture, Turn
from loreloop.text.openai_messages import message_of_turn
from loreloop.text.redaction import redactor
from loreloop.text.replies import WholeReply, new_call_id
from loreloop.text.tools.tool_calls import Piece

MOST_BYTES = 16 << 20  # of one turn as it is stored, images included
ABANDONED = "abandoned"


@dataclass
class Draft:
    """One sample that is shown while it grows, for when its reader leaves."""

    heard: WholeReply = field(default_factory=WholeReply)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Said:
    """One answer as it ended, to the prompt of `chat`; `made` are calls and results between the question and it.
    `unfinished`: its reader left before its end, or its last call was cut off."""

    chat: Chat
    answer: Turn
    tokens: TokenIds
    logprobs: Logprobs
    finish_reason: str
    made: tuple[Turn, ...] = ()
    unfinished: bool = False


class TurnRecording:
    """One request. Where its deployment records nothing, or no deployment was asked, all of this does nothing."""

    def __init__(self, recorder: Recorder, model: Model, marks: Marks) -> None:
        self.recorder, self.model, self.marks = recorder, model, marks
        deployed = model.target.deployed
        self.deployed: Deployed | None = deployed if deployed and deployed.deployment.recording.record else None
        self.started, self.created = time.perf_counter(), now()
        self.chat: Chat | None = None
        self.conversation = Conversation(())
        self.answer_id = ""
        self.drafts: dict[int, Draft] = {}

    @property
    def told(self) -> dict[str, str]:
        """What an answer tells of its turn."""
        return {EPISODE: self.deployed.episode_id} if self.deployed else {}

    def begin(self, chat: Chat, conversation: Conversation, answer_id: str) -> None:
        """The request is checked, and its answer's id is known."""
        if self.deployed is not None:
            self.chat, self.conversation, self.answer_id = chat, conversation, answer_id
        elif self.model.target.deployed is not None:
            self.recorder.pass_over(self._trace_of(self.model.target.deployed, answer_id))

    def go_live(self) -> None:
        """A stream begins, so the id goes out before the answer ends. Whoever calls this calls `leave` at its end."""
        if self.chat is not None:
            self.drafts = {index: Draft() for index in range(self.chat.op.num_samples)}
            for index in self.drafts:
                self.recorder.open(self._trace(index))

    def shown(self, index: int, token: Token, pieces: Sequence[Piece]) -> None:
        """One more token of a live sample, and the pieces that it has completed."""
        if (draft := self.drafts.get(index)) is not None:
            draft.tokens.append(token.token)
            draft.logprobs.append(token.logprob)
            draft.heard.add(pieces)

    def ended(self, index: int, sequence: SampledSequence, pieces: Sequence[Piece]) -> None:
        """A live sample has ended with these last pieces."""
        if (draft := self.drafts.get(index)) is not None:
            draft.heard.add(pieces)
            self.keep(index, sequence, draft.heard)

    def keep(
        self,
        index: int,
        sequence: SampledSequence,
        heard: WholeReply,
        made: tuple[Turn, ...] = (),
        chat: Chat | None = None,
    ) -> None:
        """A sample has ended with this answer. After calls and results that were `made` it is one to `chat`, whose
        prompt holds these, and no longer to the first prompt."""
        if self.deployed is None or self.chat is None:
            return
        self.drafts.pop(index, None)
        said = Said(
            chat=chat or self.chat,
            answer=answer_turn(self.conversation, heard),
            tokens=sequence.tokens,
            logprobs=sequence.logprobs,
            finish_reason=finish_of(sequence, makes_calls=bool(heard.calls) and not heard.cut),
            made=made,
            unfinished=heard.cut or heard.is_open,
        )
        self._put(index, said)

    def fail(self) -> None:
        """Nothing more comes, and what was shown is no answer."""
        drafts, self.drafts = self.drafts, {}
        for index in drafts:
            self.recorder.drop(self._trace(index))

    def leave(self) -> None:
        """The stream is over. What was shown of samples that have not ended is kept as an answer that was abandoned,
        from which nothing is learned: its end was never sampled."""
        if self.chat is None:
            return
        drafts, self.drafts = self.drafts, {}
        for index, draft in drafts.items():
            if not draft.tokens:
                self.recorder.drop(self._trace(index))
                continue
            said = Said(
                chat=self.chat,
                answer=answer_turn(self.conversation, draft.heard),
                tokens=pack_ids(draft.tokens),
                logprobs=pack_logprobs(draft.logprobs),
                finish_reason=ABANDONED,
                unfinished=True,
            )
            self._put(index, said)

    def _put(self, index: int, said: Said) -> None:
        prompt = said.chat.op.prompt
        n_image_bytes = sum(len(chunk.data) for chunk in prompt if isinstance(chunk, ImageChunk))
        # About eight bytes a token: its id, and its text in the conversation; an image stands in a URL besides.
        n_bytes = 1024 + 8 * length_of(prompt) + 4 * len(said.tokens) + 3 * n_image_bytes
        latency = time.perf_counter() - self.started
        self.recorder.put(Waiting(self._trace(index), partial(self._made, index, said, latency), n_bytes))

    def _id(self, index: int) -> str:
        return f"{self.answer_id}:{index}" if index else self.answer_id

    def _trace(self, index: int) -> NewTurn:
        assert self.deployed is not None, "only what is recorded leaves a trace"
        return self._trace_of(self.deployed, self._id(index))

    def _trace_of(self, deployed: Deployed, turn_id: str) -> NewTurn:
        deployment, revision = deployed.deployment, self.model.target.revision
        consent = self.marks.consent if self.marks.consent is not None else deployment.recording.consent
        return NewTurn(
            id=turn_id,
            episode_id=deployed.episode_id,
            deployment=deployment.name,
            key_id=deployed.person.key_id,
            user=deployed.person.user,
            created=self.created,
            arm=deployed.arm,
            version=deployment.version,
            version_created=deployment.created,
            base_model=self.model.target.base_model,
            revision=revision.revision_id if revision else None,
            consent=consent,
            said_consent=self.marks.consent,
            side=self.marks.side,
            body=None,
        )

    def _made(self, index: int, said: Said, latency: float) -> NewTurn:
        """The turn with its body; without one where that is too large. In the recorder's thread."""
        assert self.deployed is not None, "only what is recorded is made"
        op = said.chat.op
        turns = (*with_images(self.conversation.turns, op.prompt), *said.made)
        body = TurnBody(
            messages=tuple(map(message_of_turn, turns)),
            answer=message_of_turn(said.answer),
            tools=tuple(tool.as_function() for tool in said.chat.rules.tools),  # those that the prompt shows
            base_model=self.model.target.base_model,
            prompt=text_ids(op.prompt),
            tokens=said.tokens,
            logprobs=said.logprobs,
            temperature=op.params.temperature,
            finish_reason=said.finish_reason,
            latency_seconds=latency,
        )
        rules, decode = self.deployed.deployment.recording.redact, said.chat.model.text.tokenizer.decode
        data = packed(redacted(body, rules, decode))
        body_bytes = data if len(data) <= MOST_BYTES else None
        return msgspec.structs.replace(self._trace(index), body=body_bytes, unfinished=said.unfinished)


def answer_turn(conversation: Conversation, heard: WholeReply) -> Turn:
    """An answer as a turn, behind how it was made to begin. A call that was cut off, or has not ended, is none."""
    whole = heard.calls[:-1] if heard.cut or heard.is_open else heard.calls
    calls = tuple(MadeCall(call.call_id or new_call_id(), call.name, call.arguments) for call in whole)
    return Turn("assistant", conversation.begun + heard.content, thinking=heard.thinking or None, calls=calls)


def with_images(turns: Sequence[Turn], prompt: Sequence[Chunk]) -> list[Turn]:
    """The turns with every picture as data: what stands at an address may change, or go."""
    images = iter([chunk for chunk in prompt if isinstance(chunk, ImageChunk)])
    return [
        replace(turn, parts=tuple(_as_data(part, images) if isinstance(part, Picture) else part for part in turn.parts))
        for turn in turns
    ]


def _as_data(picture: Picture, images: Iterator[ImageChunk]) -> Picture:
    # The prompt holds the images of the conversation in the same order.
    image = next(images, None)
    if image is None or picture.url[:5].lower() == "data:":
        return picture
    return Picture(f"data:image/{image.format};base64,{base64.b64encode(image.data).decode()}")


def text_ids(prompt: Sequence[Chunk]) -> TokenIds:
    """The ids of a prompt; none where images stand in it, since their places have no ids."""
    texts = [chunk.tokens for chunk in prompt if isinstance(chunk, TextChunk)]
    return join_ids(texts) if len(texts) == len(prompt) else TokenIds(b"")


def redacted(body: TurnBody, rules: tuple[str, ...], decode: Callable[[Sequence[int]], str]) -> TurnBody:
    """The body without what the rules take out. Ids of tokens say what a text says, so they go with what was changed in
    theirs, and where their own text holds what is to go: an answer's tokens hold more than the answer, such as a call
    that was cut off."""
    if not rules:
        return body
    found = redactor(rules)
    messages = tuple(map(found.message, body.messages))
    answer = found.message(body.answer)

    def hides(ids: TokenIds) -> bool:
        text = decode(unpack_ids(ids).tolist())
        return found.text(text) != text

    prompt, tokens, logprobs = body.prompt, body.tokens, body.logprobs
    if messages != body.messages or hides(prompt):
        prompt = TokenIds(b"")
    if answer != body.answer or hides(tokens):
        tokens, logprobs = TokenIds(b""), Logprobs(b"")
    return msgspec.structs.replace(
        body, messages=messages, answer=answer, prompt=prompt, tokens=tokens, logprobs=logprobs
    )
