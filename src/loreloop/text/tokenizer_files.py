"""A tokenizer as a folder's files name it together: `tokenizer.json`, and what others beside it add to its tokens.

Reads them in the order in which transformers 5 does: `added_tokens_decoder` of `tokenizer_config.json` where there is
one, else `special_tokens_map.json` and `added_tokens.json`; names of special tokens last. A token gets the next free
id, whatever number its file gives it. Knows no templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import AddedToken, Tokenizer

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.json_files import read_json_object

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NO_TOKENIZER = "holds no tokenizer.json; convert its tokenizer to that form first"
MISSPELT = (AttributeError, KeyError, TypeError, ValueError)  # what comes of values of other types than they should be


@dataclass(frozen=True)
class TokenizerFiles:
    """`settings` are those of tokenizer_config.json; `named` are special tokens by what templates call them."""

    tokenizer: Tokenizer
    settings: dict[str, Any]
    named: dict[str, str]


def read_text(file: Path) -> str:
    """BadRequest that names the file where it cannot be read, or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file} cannot be read: {error}.") from None


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object, empty where there is no file; BadRequest that names it where it holds another thing."""
    return read_json_object(file, str(file)) if file.exists() else {}


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """BadRequest that names the file which is missing or broken."""
    tokenizer = _tokenizer(folder / "tokenizer.json")
    settings = read_object(folder / "tokenizer_config.json")
    # Only where a folder has no list of added tokens are the older files looked at, as transformers does.
    older = "added_tokens_decoder" not in settings
    overriding = read_object(folder / "special_tokens_map.json") if older else {}
    try:
        special = _special(settings, overriding)
        if older:
            entries = read_object(folder / "added_tokens.json")
            numbered = _by_number(entries, special)
            special = _in_plain_form(special, entries)
        else:
            numbered = {int(n): AddedToken(**_plain(entry)) for n, entry in settings["added_tokens_decoder"].items()}
        tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        _add(tokenizer, numbered, special)
    except MISSPELT as error:
        raise BadRequest(f"The special tokens in {folder} lack or misspell something: {error}.") from None
    return TokenizerFiles(tokenizer, settings, {name: str(token) for name, token in special.named.items()})


def _tokenizer(file: Path) -> Tokenizer:
    """With nothing that would cut a long text off, or fill a short one up: that is for batches of equal lengths."""
    if not file.exists():
        raise BadRequest(f"{file.parent} {NO_TOKENIZER}.")
    try:
        tokenizer = Tokenizer.from_buffer(read_text(file).encode())
    except ValueError as error:
        raise BadRequest(f"{file} is no tokenizer: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


Token: TypeAlias = str | AddedToken


@dataclass(frozen=True)
class _Special:
    """Special tokens: those with a name, and those without."""

    named: dict[str, Token]
    extra: list[Token]

    @property
    def texts(self) -> set[str]:
        return {str(token) for token in (*self.named.values(), *self.extra)}


def _special(settings: Mapping[str, Any], overriding: Mapping[str, Any]) -> _Special:
    """By tokenizer_config.json, and by special_tokens_map.json, which goes before it. The order decides on new ids."""
    own, other = _extra(settings), _extra(overriding)
    if "extra_special_tokens" in overriding and isinstance(own, list) and isinstance(other, list):
        extra: Any = own + [entry for entry in other if entry not in own]
    else:
        extra = other if own is None else own
    names = _names(overriding) | _names(settings)
    unnamed = extra if isinstance(extra, dict) else {}
    standard = {name: names.pop(name) for name in STANDARD if name in names}
    named = standard | names | unnamed | {n: v for n, v in _names(overriding).items() if n in standard}
    listed = [_token(entry) for entry in extra] if isinstance(extra, list) else []
    return _Special({name: _token(value) for name, value in named.items()}, listed)


def _names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens by name: the standard ones, and a model's own, whose names end like theirs."""
    return {
        n: value for n, value in settings.items() if n.endswith("_token") and isinstance(value, str | dict) and value
    }


def _extra(settings: Mapping[str, Any]) -> Any:
    """What names special tokens besides, under the newer or the older spelling: a list, a dictionary, or None."""
    return settings.get("extra_special_tokens", settings.get("additional_special_tokens"))


def _token(value: str | Mapping[str, Any]) -> Token:
    return value if isinstance(value, str) else AddedToken(**{**_plain(value), "special": True})


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "__type"}


def _by_number(entries: Mapping[str, Any], special: _Special) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, special where something else names them so."""
    texts = special.texts
    return {
        int(number): AddedToken(text, normalized=text not in texts, special=text in texts)
        for text, number in entries.items()
    }


def _in_plain_form(special: _Special, entries: Mapping[str, Any]) -> _Special:
    """A token that added_tokens.json lists has the form which that gives it, even if it loses its id there to another
    of the same id."""
    plain = {text: AddedToken(text, normalized=False, special=True) for text in entries}
    return _Special({name: plain.get(str(token), token) for name, token in special.named.items()}, special.extra)


def _add(tokenizer: Tokenizer, numbered: Mapping[int, AddedToken], special: _Special) -> None:
    """Adds what the tokenizer does not have in that very form; the library gives known texts their old ids."""
    known = tokenizer.get_added_tokens_decoder().values()
    forms, texts = {repr(token) for token in known}, {token.content for token in known}
    new: list[Token] = [token for _, token in sorted(numbered.items()) if repr(token) not in forms]
    texts |= {str(token) for token in new}
    for token in (*special.named.values(), *special.extra):
        if str(token) not in texts and token not in new:  # the same text in two forms: the library takes the later one
            new.append(token)
    named = {str(token) for token in special.named.values()}
    adding = [AddedToken(token, special=True) if isinstance(token, str) else token for token in new]
    for token in adding:
        token.special = token.special or token.content in named
    tokenizer.add_tokens(adding)
