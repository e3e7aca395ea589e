"""Several turns as one row of tokens: what is shown between two answers is found from the model's own template.

A template tells whole conversations, and may tell an answer of the past in other words than it was given. So the answer
is rendered as a mark, and the text behind the mark is what comes after any answer. Knows no environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tinker

from loreloop.learn.pictures import Looking, urls_of
from loreloop.learn.rendering import Renderer
from loreloop.learn.rewards.reward import Answer
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, Turn, told_text

MARK = "\u241e the answer \u241e"  # nothing that anybody says


class Dialogue:
    """`Words` of a base model, by its template and tokenizer. Images that an environment shows are counted by
    `looking`; without it, only those can be shown that the renderer knows."""

    def __init__(self, renderer: Renderer, looking: Looking | None = None) -> None:
        self.renderer, self.looking = renderer, looking
        self.ends = {renderer.tokenizer.decode([token]): token for token in renderer.stop}

    @property
    def stop(self) -> list[int]:
        """The ids that end an answer."""
        return self.renderer.stop

    async def prompt(self, conversation: Conversation) -> tinker.ModelInput:
        """The tokens from which a model goes on, with its images. BadRequest where its template does not accept the
        conversation, or where it shows images and the model reads text only."""
        renderer = self.renderer
        if self.looking is not None and renderer.sight is not None and urls_of([conversation]):
            renderer = renderer.seeing(await self.looking.at(conversation))
        return renderer.prompt(conversation)

    def answer(self, tokens: Sequence[int], to: Conversation, *, ended: bool | None = None) -> Answer:
        """What sampled tokens say."""
        return self.renderer.answer(tokens, to, ended=ended)

    def behind(self, conversation: Conversation, turns: Sequence[Turn], *, ended: bool) -> list[int]:
        """The tokens between an answer, which ends the conversation, and the next one. An answer that was cut off is
        ended first. BadRequest where the template does not tell where an answer ends."""
        if any(turn.pictures for turn in turns):
            raise BadRequest(
                "An environment shows images in what it asks first; between two answers it has words only."
            )
        rest = self._rest(conversation, turns)
        # A template may end its turns in several ways, and the first end behind the words is the answer's own.
        found = {rest.find(end): end for end in self.ends if end in rest}
        if not found:
            raise BadRequest(
                "The model's chat template does not end an answer with a token that ends one, so that no turn can be "
                "shown behind it; train on tasks of one answer, or mend the template."
            )
        place = min(found)
        shown = self.renderer.tokenizer.encode(rest[place + len(found[place]) :])
        # A model that was cut off has not said its end, but it must stand in the row: the template never leaves it out.
        return shown if ended else [self.ends[found[place]], *shown]

    def _rest(self, conversation: Conversation, turns: Sequence[Turn]) -> str:
        """The text from an answer's last word on, its end included."""
        template = self.renderer.template
        # Without thoughts, which many templates tell differently of the past than of the present.
        marked = replace(conversation.turns[-1], content=MARK, thinking=None, parts=())
        before = replace(conversation, turns=(*conversation.turns[:-1], marked))
        text = self.renderer.prompt_text(replace(before, turns=(*before.turns, *turns)))
        if MARK in text:
            return text.rpartition(MARK)[2]
        # Some templates tell nothing of an answer but its calls; then the past ends where the two texts part.
        told = told_text(template, before)
        ends = [told.rfind(end) for end in self.ends if end in told]
        return text[max(ends) :] if ends and text.startswith(told) else ""
