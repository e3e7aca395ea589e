"""Tokenizers and chat templates of the served bases, loaded when first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loreloop.text.chat import ChatTemplate
from loreloop.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class ModelText:
    tokenizer: TextTokenizer
    template: ChatTemplate


class Texts:
    def __init__(self) -> None:
        self.loaded: dict[Path, ModelText] = {}

    def of(self, folder: Path) -> ModelText:
        if folder not in self.loaded:
            tokenizer = TextTokenizer(folder)
            self.loaded[folder] = ModelText(tokenizer, ChatTemplate(folder, tokenizer))
        return self.loaded[folder]
