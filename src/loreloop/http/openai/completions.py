"""OpenAI's route for bare texts: a prompt goes on. Chat is in `chat_completions`, the list of models in `models`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.http.bodies import read_as_sent
from loreloop.http.generation.answering import answered
from loreloop.http.generation.requests import Model, Report, encoded, find_model, followed, operation, prompt_only
from loreloop.http.openai.answer_format import failure_event, frame, stop_strings, usage, wire_params
from loreloop.http.openai.logprobs import Places, Scored, scored_prompt, scored_sequence, scored_token, text_logprobs
from loreloop.http.services import Services, asker, now, services
from loreloop.http.sse import data_event
from loreloop.protocol.checks import check_tokens
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.link import Token
from loreloop.protocol.openai_rest import Completion
from loreloop.protocol.sampling import PromptScores, SampleOp, SampleResult, StopReason
from loreloop.protocol.training import Failure
from loreloop.text.streaming_detokenizer import StreamingDetokenizer
from loreloop.text.tokenizer import TextTokenizer

DEFAULT_MAX_TOKENS = 16  # as OpenAI has it
MAX_PROMPTS = 128


@dataclass(frozen=True)
class CompletionPrompt:
    """`text` None: it came as ids. The tokens at `added` are those that the tokenizer put around it."""

    ids: list[int]
    text: str | None = None
    added: frozenset[int] = frozenset()


@dataclass(frozen=True)
class PendingAnswer:
    """A checked request: one operation a prompt."""

    body: Completion
    model: Model
    prompts: list[CompletionPrompt]
    ops: list[SampleOp]
    created: int

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the model that answers."""
        return self.model.text.tokenizer

    @property
    def prompt_only(self) -> bool:
        """Whether no token shall be drawn, only the prompt read, scored or echoed."""
        return self.body.max_tokens == 0

    def visible_result(self, result: SampleResult) -> SampleResult:
        """The result as the client may see it: without the token that was drawn for nobody."""
        return prompt_only(result) if self.prompt_only else result

    def detokenizer(self, op: SampleOp) -> StreamingDetokenizer:
        """What turns a sample's tokens into text, up to its stop strings."""
        return StreamingDetokenizer(self.tokenizer, op.params.stop_tokens, stop_strings(self.body))

    def frame(self) -> dict[str, Any]:
        """The fields that open an answer or a chunk of this request."""
        return frame("cmpl", "text_completion", self.ops[0], self.body.model, self.created, self.model)

    async def whole(self, results: Sequence[SampleResult]) -> dict[str, Any]:
        """The whole answer, with the choices of every prompt in the prompts' order, and the usage."""
        found = [self.visible_result(result) for result in results]
        choices = [choice for number, result in enumerate(found) for choice in whole_choices(self, number, result)]
        return self.frame() | {"choices": choices, "usage": usage(self.ops, found)}


async def completions(request: Request) -> Response:
    """OpenAI's route for bare texts: the answer whole or as a stream."""
    asker(request)
    body = await read_as_sent(request, Completion)
    pending = await pending_answer(body, await find_model(request, body.model, body.user))
    stream = events(services(request), pending) if body.stream else None
    return await answered(request, pending.model, pending.ops, pending.whole, stream)


async def pending_answer(body: Completion, model: Model) -> PendingAnswer:
    """The checked request with one operation for every prompt. BadRequest where its fields do not fit together."""
    if body.echo and body.stream and body.logprobs is not None:
        raise BadRequest("echo with logprobs is not served with stream; leave one of them out.")
    prompts = await prompts_of(body, model)
    wire = wire_params(body, DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
    # Scores of the prompt cost a pass over it, so they are computed only where they will be shown.
    wants_prompt = bool(body.echo) and body.logprobs is not None
    scores = PromptScores(logprobs=True, top_k=body.logprobs or 0) if wants_prompt else PromptScores()
    report = Report(body.logprobs or 0, bool(body.filtered_logprobs), scores)
    chunks = [(check_tokens(prompt.ids, model.info),) for prompt in prompts]
    ops = [await operation(model, prompt, wire, body.n or 1, report, stream=bool(body.stream)) for prompt in chunks]
    return PendingAnswer(body, model, prompts, ops, int(now()))


async def prompts_of(body: Completion, model: Model) -> list[CompletionPrompt]:
    """A text, ids, or a list of either. A text gets what the model's tokenizer puts around every text, ids do not."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [await _of_text(model, prompt)]
    # A list of whole numbers is one prompt, and may be as long as the window.
    if not prompt or (len(prompt) > MAX_PROMPTS and not isinstance(prompt[0], int)):
        raise BadRequest(f"prompt holds {len(prompt)} prompts; send 1 to {MAX_PROMPTS}.")
    # One list may hold texts, or ids, or lists of ids; what decides is the kind of its items.
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise BadRequest("prompt mixes texts, ids and lists of ids; send one kind.")
    if kinds == {int}:
        return [CompletionPrompt([item for item in prompt if isinstance(item, int)])]
    return [await _of_text(model, p) if isinstance(p, str) else CompletionPrompt(list(p)) for p in prompt]  # type: ignore[arg-type]


async def _of_text(model: Model, text: str) -> CompletionPrompt:
    found = await encoded(model, text, special=True)
    return CompletionPrompt(found.ids, text, found.added)


def whole_choices(pending: PendingAnswer, number: int, result: SampleResult) -> list[dict[str, Any]]:
    """The choices of one prompt; their indices go on from those of the prompts before."""
    op, n = pending.ops[number], pending.ops[number].num_samples
    head, head_scored = echoed(pending, number, result)
    choices = []
    for index, sequence in enumerate(result.sequences):
        detokenizer, scored = pending.detokenizer(op), scored_sequence(sequence)
        text = "".join(detokenizer.push(one.token) for one in scored) + detokenizer.flush()
        choice = {"index": number * n + index, "text": head + text, "finish_reason": sequence.stop_reason}
        logprobs = None
        if pending.body.logprobs is not None:
            # Offsets count over the whole text, so those of the answer begin behind the prompt that is echoed.
            in_head, behind = Places(pending.tokenizer), Places(pending.tokenizer, detokenizer.hidden, len(head))
            places = [*in_head.of(head_scored, pending.prompts[number].added), *behind.of(scored)]
            logprobs = text_logprobs([*head_scored, *scored], places, pending.tokenizer)
        choices.append(choice | {"logprobs": logprobs})
    return choices


def echoed(pending: PendingAnswer, number: int, result: SampleResult | None) -> tuple[str, list[Scored]]:
    """The prompt as the answer's beginning, where that was asked for."""
    if not pending.body.echo:
        return "", []
    prompt, scores = pending.prompts[number], result.prompt if result else None
    scored = scored_prompt(prompt.ids, scores.logprobs, scores.topk) if scores else []
    text = pending.tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text
    return text, scored


class StreamedText:
    """One sample of a stream: tokens wait until their text can be shown, and leave with it."""

    def __init__(self, pending: PendingAnswer, number: int, index: int) -> None:
        self.pending, self.index = pending, number * pending.ops[number].num_samples + index
        self.detokenizer, self.waiting = pending.detokenizer(pending.ops[number]), list[Scored]()
        self.shown = echoed(pending, number, None)[0]
        self.places = Places(pending.tokenizer, self.detokenizer.hidden)  # a prompt has none: refused beside a stream

    def push(self, token: Token) -> dict[str, Any] | None:
        """The chunk that one more token makes; None while its text may still change."""
        self.waiting.append(scored_token(token))
        text = self.detokenizer.push(token.token)
        return self._event(text, None) if text else None

    def end(self, finish: StopReason) -> dict[str, Any]:
        """The last chunk, with the text that was held back and why the sample ended."""
        return self._event(self.detokenizer.flush(), finish)

    def _event(self, text: str, finish: StopReason | None) -> dict[str, Any]:
        # An echoed prompt leaves with the first chunk.
        text, self.shown = self.shown + text, ""
        scored, self.waiting = self.waiting, []
        wanted = self.pending.body.logprobs is not None
        logprobs = text_logprobs(scored, self.places.of(scored), self.pending.tokenizer) if wanted else None
        choice = {"index": self.index, "text": text, "finish_reason": finish, "logprobs": logprobs}
        return self.pending.frame() | {"choices": [choice]}


async def events(served: Services, pending: PendingAnswer) -> AsyncIterator[bytes]:
    """The chunks of a stream, those of all prompts and samples mixed as they come, and the usage last where it was
    asked for."""
    samples = [
        [StreamedText(pending, number, index) for index in range(op.num_samples)]
        for number, op in enumerate(pending.ops)
    ]
    found: list[SampleResult] = []
    async for number, item in followed(served, pending.ops):
        if isinstance(item, Failure):
            yield failure_event(item)
        elif isinstance(item, SampleResult):
            found.append(pending.visible_result(item))
            for index, sequence in enumerate(found[-1].sequences):
                yield data_event(samples[number][index].end(sequence.stop_reason))
        elif not pending.prompt_only and (event := samples[number][item.sample_index].push(item)):
            yield data_event(event)
    if pending.body.stream_options and pending.body.stream_options.include_usage:
        yield data_event(pending.frame() | {"choices": [], "usage": usage(pending.ops, found)})
    yield b"data: [DONE]\n\n"


async def embeddings(request: Request) -> Response:
    """BadRequest: clients ask for embeddings by habit, and a plain refusal helps more than an unknown path."""
    asker(request)
    raise BadRequest("Embeddings are not served here: the models on this server generate text.")


ROUTES = [
    Route("/completions", completions, methods=["POST"]),
    Route("/embeddings", embeddings, methods=["POST"]),
]
