"""Tokenizers, chat templates and sampling defaults of the served bases, loaded when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loreloop.text.templates.chat_template import ChatTemplate
from loreloop.text.templates.generation_defaults import read_defaults
from loreloop.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class ModelText:
    """`defaults` are sampling parameters that the model's folder asks for."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    defaults: Mapping[str, float]


class ModelTexts:
    """One per HTTP process."""

    def __init__(self) -> None:
        self.loaded: dict[Path, ModelText] = {}
        self.read: dict[Path, Mapping[str, float]] = {}

    def of(self, folder: Path) -> ModelText:
        """BadRequest that names the file where one of the folder is broken."""
        # A tokenizer takes seconds to load, so it is loaded once, and only for models that are asked for text.
        if folder not in self.loaded:
            tokenizer = TextTokenizer(folder)
            self.loaded[folder] = ModelText(tokenizer, ChatTemplate(folder, tokenizer), self.defaults(folder))
        return self.loaded[folder]

    def defaults(self, folder: Path) -> Mapping[str, float]:
        """The sampling defaults alone, for which no tokenizer need be loaded."""
        if folder not in self.read:
            self.read[folder] = read_defaults(folder)
        return self.read[folder]
