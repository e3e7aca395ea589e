"""Conversations as tokens to learn from, and sampled tokens as answers, by a base model's own template and tokenizer.

A prompt is, token for token, what the server's chat routes would send. What is learned are the assistant's own tokens
with the one that ends the answer. Knows no losses, no files of examples and no servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tinker

from loreloop.learn.examples import Demonstration
from loreloop.learn.pictures import Chunks
from loreloop.learn.rewards.reward import Answer
from loreloop.protocol.errors import BadRequest
from loreloop.text.answers import THINK, closed
from loreloop.text.conversation import Conversation, MadeCall, Turn, prompt_text, told_text
from loreloop.text.replies import read_whole, rules_of
from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tokenizer_files import read_object

NOTHING = Conversation(())


@dataclass
class Weighted:
    """Token ids, and how much each counts as a target; what only leads to an answer counts 0. An image is the one id
    that the template writes for it; `images` are its chunks, in their order."""

    tokens: list[int]
    weights: list[float]
    images: tuple[tinker.types.ImageChunk, ...] = ()

    def goes_on(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins with these very tokens."""
        return self.tokens == prompt[: len(self.tokens)]


@dataclass(frozen=True)
class Sight:
    """The id that templates write where an image goes, and the images that are known, by their URLs."""

    placeholder: int
    chunks: Chunks = field(default_factory=dict)


class Renderer:
    """`stop` are the ids that end an answer, as the server takes them too; they are for sampling parameters. Without
    `sight` the model reads text only. With `thinks` False a thought that the template begins is ended in the prompt."""

    thinks = True

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate, stop: Sequence[int], sight: Sight | None = None
    ) -> None:
        self.tokenizer, self.template, self.stop, self.sight = tokenizer, template, list(stop), sight

    def without_thoughts(self) -> Renderer:
        """The same for answers that are held to a form, whose prompts end a thought as the chat routes do."""
        renderer = copy(self)
        renderer.thinks = False
        return renderer

    def seeing(self, chunks: Chunks) -> Renderer:
        """The same, with images that conversations may show. BadRequest where the model reads text only."""
        if self.sight is None:
            raise BadRequest("This model reads text only; leave images (image_url) out, or take a vision model.")
        renderer = copy(self)
        renderer.sight = Sight(self.sight.placeholder, chunks)
        return renderer

    def prompt(self, conversation: Conversation) -> tinker.ModelInput:
        """The tokens from which a model goes on. BadRequest where its template does not accept the conversation."""
        tokens = self.prompt_tokens(conversation)
        return tinker.ModelInput(chunks=self._chunks(tokens, self._images(conversation, tokens)))

    def prompt_tokens(self, conversation: Conversation) -> list[int]:
        """The ids of `prompt`; an image is the one id that the template writes for it."""
        return self.tokenizer.encode(self.prompt_text(conversation))

    def prompt_text(self, conversation: Conversation) -> str:
        """The text of `prompt`."""
        text = prompt_text(self.template, conversation)
        if not self.thinks and rules_of(self.tokenizer, self.template, conversation, text).opened:
            return closed(text)
        return text

    def demonstrations(self, demonstration: Demonstration) -> list[tinker.Datum]:
        """Data for `cross_entropy`. Answers share a datum as long as the prompt of the next begins with the tokens of
        the last; where a template changes what was said, such as by dropping past thoughts, a new one begins. Turns
        without weight are read and not learned."""
        return [self._datum(weighted) for weighted in self.weighted(demonstration)]

    def weighted(self, demonstration: Demonstration) -> list[Weighted]:
        """Tokens and weights of `demonstrations`, before they are shifted into inputs and targets."""
        found: list[Weighted] = []
        turns = demonstration.conversation.turns
        for number, (turn, weight) in enumerate(zip(turns, demonstration.weights, strict=True)):
            if turn.role != "assistant" or weight == 0:
                continue
            prompt, answer = self._asked(demonstration.conversation, number)
            if not (found and found[-1].goes_on(prompt)):
                found.append(Weighted([], []))
            last = found[-1]
            between = prompt[len(last.tokens) :]
            until = replace(demonstration.conversation, turns=turns[: number + 1])
            last.images = self._images(until, [*prompt, *answer])
            last.tokens += [*between, *answer]
            last.weights += [0.0] * len(between) + [weight] * len(answer)
        return found

    def going_on(self, prompt: Conversation, answer: Conversation) -> list[tinker.Datum]:
        """Data for an answer's turns behind a prompt, of which the assistant's count with weight 1."""
        turns = (*prompt.turns, *answer.turns)
        weights = (0.0,) * len(prompt.turns) + (1.0,) * len(answer.turns)
        return self.demonstrations(Demonstration(replace(prompt, turns=turns), weights))

    def answer(self, tokens: Sequence[int], to: Conversation = NOTHING, *, ended: bool | None = None) -> Answer:
        """What sampled tokens say. `to` is the conversation that was asked, which says what tools there are and
        whether its prompt has begun a thought. Without `ended`, an answer counts as whole if a stop token is last."""
        prompt = self.prompt_text(to) if to.turns else ""
        rules = replace(rules_of(self.tokenizer, self.template, to, prompt), stop_tokens=self.stop)
        whole = read_whole(rules.begin(), tokens)
        return Answer(
            text=whole.content,
            calls=tuple(MadeCall(call.call_id or "", call.name, call.arguments) for call in whole.calls),
            thinking=whole.thinking or None,
            n_tokens=len(tokens),
            ended=bool(tokens) and tokens[-1] in self.stop if ended is None else ended,
        )

    def _asked(self, conversation: Conversation, number: int) -> tuple[list[int], list[int]]:
        """The tokens of the prompt before a turn, and those of the turn as its model would have to say it."""
        turns = conversation.turns
        prompt = prompt_text(self.template, replace(conversation, turns=turns[:number]))
        told = told_text(self.template, replace(conversation, turns=turns[: number + 1]))
        said = said_behind(prompt, told, turns[number].thinking or "")
        if said is None:
            said = self._behind_header(replace(conversation, turns=turns[:number]), prompt, told)
        asked, both = self.tokenizer.encode(prompt), self.tokenizer.encode(prompt + said)
        # Some tokenizers write a text differently at its beginning, so the answer is read behind its prompt, as long
        # as the border stays where sampling has it.
        whole = both[: len(asked)] == asked
        return asked, self._until_its_end(both[len(asked) :] if whole else self.tokenizer.encode(said))

    def _behind_header(self, before: Conversation, prompt: str, told: str) -> str:
        """An answer where the template spaces its prompts and what it tells differently. What two answers' texts begin
        with is what stands before an answer; it must be the prompt but for white space. BadRequest where it is not."""
        pair = [replace(before, turns=(*before.turns, Turn("assistant", letter))) for letter in "AB"]
        one, other = (told_text(self.template, each) for each in pair)
        places = enumerate(zip(one, other, strict=False))
        header = one[: next((place for place, (left, right) in places if left != right), 0)]
        if not told.startswith(header) or "".join(header.split()) != "".join(prompt.split()):
            raise BadRequest(
                "The model's chat template tells an answer in another way than it asks for one, so the two cannot be "
                "told apart; train on text of your own with the Tinker API, or mend the template."
            )
        return told[len(header) :]

    def _until_its_end(self, answer: list[int]) -> list[int]:
        """The answer's tokens up to the first one that ends it, where sampling would stop. What a template writes
        behind that nobody samples."""
        end = next((place for place, token in enumerate(answer) if token in self.stop), None)
        return [*answer, *self.stop[:1]] if end is None else answer[: end + 1]

    def _images(self, conversation: Conversation, tokens: Sequence[int]) -> tuple[tinker.types.ImageChunk, ...]:
        """The chunks of a conversation's images. BadRequest where its tokens have not just one place for each."""
        urls = [picture.url for turn in conversation.turns for picture in turn.pictures]
        if self.sight is None:
            if urls:
                self.seeing({})
            return ()
        if (n := tokens.count(self.sight.placeholder)) != len(urls):
            raise BadRequest(
                f"The conversation has {n} places for {len(urls)} images: either the model's chat template does not "
                "show them, or a text holds the template's own mark for an image; leave that out."
            )
        return tuple(self.sight.chunks[url] for url in urls)

    def _chunks(
        self, tokens: Sequence[int], images: Sequence[tinker.types.ImageChunk]
    ) -> list[tinker.types.ModelInputChunk]:
        """Tokens with each image in the place of the id that stands for it."""
        chunks: list[tinker.types.ModelInputChunk] = []
        start, left = 0, iter(images)
        for place, token in enumerate(tokens):
            if images and self.sight and token == self.sight.placeholder:
                chunks += [tinker.EncodedTextChunk(tokens=list(tokens[start:place]))] if place > start else []
                chunks.append(next(left))
                start = place + 1
        return [*chunks, tinker.EncodedTextChunk(tokens=list(tokens[start:]))] if start < len(tokens) else chunks

    def _datum(self, weighted: Weighted) -> tinker.Datum:
        """Each token is the target of the position before it. An image has as many positions as the server makes of
        it, none of which is learned."""
        tokens, weights, left = list[int](), list[float](), iter(weighted.images)
        for token, weight in zip(weighted.tokens, weighted.weights, strict=True):
            is_image = weighted.images and self.sight is not None and token == self.sight.placeholder
            n = next(left).length if is_image else 1
            tokens += [token] * n
            weights += [weight] * n
        return tinker.Datum(
            # The last token is an answer's, so no image is cut off.
            model_input=tinker.ModelInput(chunks=self._chunks(weighted.tokens[:-1], weighted.images)),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], np.int64)),
                "weights": tinker.TensorData.from_numpy(np.array(weights[1:], np.float32)),
            },
        )


def said_behind(prompt: str, told: str, thinking: str) -> str | None:
    """What an assistant says behind a prompt so that the conversation becomes the one told; None where the one does not
    begin with the other."""
    if told.startswith(prompt):
        return told[len(prompt) :]
    # A template may begin a thought, or an empty one, in the prompt, and leave it out of what was said in the past.
    head, _, tail = prompt.rpartition(THINK[0])
    if not head or not told.startswith(head) or tail.strip() not in ("", THINK[1]):
        return None
    rest = told[len(head) :]
    if tail.strip() == THINK[1]:
        return rest
    return rest.removeprefix(THINK[0]) if rest.startswith(THINK[0]) else f"{thinking}\n{THINK[1]}\n\n{rest}"


def renderer_of(folder: Path) -> Renderer:
    """By the files of a model's folder, without its weights. BadRequest that names what is broken."""
    tokenizer, config = TextTokenizer(folder), read_object(folder / "config.json")
    named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    stop = [*dict.fromkeys((*map(int, ids), *tokenizer.end_ids))]
    if not stop:
        raise BadRequest(f"Neither config.json nor tokenizer_config.json in {folder} names a token that ends a text.")
    # Families of vision models have one of two names for it.
    placeholder = config.get("image_token_index", config.get("image_token_id"))
    sight = Sight(placeholder) if isinstance(placeholder, int) and "vision_config" in config else None
    return Renderer(tokenizer, ChatTemplate(folder, tokenizer), stop, sight)
