"""A tiktoken vocabulary (`tiktoken.model`, as Kimi publishes it) → `tokenizer.json`, the same ids for every text.

The file has a token's bytes in base64 and its rank on a line. Ranks say which pairs merge first; the merges of a token
are found by merging its bytes by the ranks below its own. Nothing of the folder's code is run: the pattern that splits
text is Kimi's, known here by the class that the folder names.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from loreloop.protocol.byte_letters import BYTE_LETTERS
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.json_files import read_json_object

FILE = "tiktoken.model"
N_RESERVED = 256  # ids behind the vocabulary that are special tokens, whether they are named or not
MOST_ADDED = 1 << 16
LETTERS = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{LETTERS}]*[\p{{Ll}}{LETTERS}]+{SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{LETTERS}]+[\p{{Ll}}{LETTERS}]*{SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
CLASS = "TikTokenTokenizer"


def convert_tiktoken(folder: Path) -> None:
    """Writes `tokenizer.json` beside the folder's `tiktoken.model`."""
    settings = _settings(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") != CLASS:
        raise BadRequest(
            f"{folder.name}/{FILE} is of the class {settings.get('tokenizer_class')!r}; it is known how Kimi's {CLASS} "
            "splits text, not how others do. Add a tokenizer.json to the folder."
        )
    ranks = read_ranks(folder / FILE)
    vocabulary = {_text(token): rank for token, rank in ranks.items()}
    # A piece that is a token stands for itself, whatever its merges would come to.
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(ranks), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(KIMI_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = _added(ranks, settings)
    tokenizer.add_tokens(added)
    wrong = [token.content for i, token in enumerate(added, len(ranks)) if tokenizer.token_to_id(token.content) != i]
    if wrong:  # a name that is taken would shift those behind it
        raise BadRequest(f"{folder.name}/tokenizer_config.json gives {wrong[0]!r} two ids, or one that is taken.")
    tokenizer.save(str(folder / "tokenizer.json"))


def read_ranks(file: Path) -> dict[bytes, int]:
    """Token → rank; ranks count from 0 without gaps."""
    ranks: dict[bytes, int] = {}
    try:
        for line in file.read_bytes().splitlines():
            token, rank = line.split()
            # Without validation foreign characters would be dropped, and two lines could become one token.
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError, binascii.Error) as error:
        raise BadRequest(f"{file} is no tiktoken vocabulary: {error}.") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not {bytes([byte]) for byte in range(256)} <= ranks.keys():
        raise BadRequest(f"{file} is no tiktoken vocabulary: ranks have gaps, or single bytes are missing.")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """The last merge of each token, in the order of ranks."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merged(token, ranks, rank)
            if len(parts) == 2:  # else no sequence of merges leads to it, and tiktoken only gives it to a whole piece
                merges.append((_text(parts[0]), _text(parts[1])))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """The token's bytes, merged by the ranks below its own, lowest and leftmost first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, below) for left, right in itertools.pairwise(parts)]
        lowest = min(pair_ranks)
        # The ranks from the token's own upward come after it and cannot have made it.
        if lowest >= below:
            break
        index = pair_ranks.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _settings(file: Path) -> dict[str, Any]:
    return read_json_object(file, f"{file.name} beside {FILE}")


def _added(ranks: Mapping[bytes, int], settings: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens behind the vocabulary, in the order of their ids; those that are not special show in texts."""
    n_base, named = len(ranks), {}
    try:
        for index, entry in (settings.get("added_tokens_decoder") or {}).items():
            special = bool(entry.get("special", True))
            named[int(index)] = AddedToken(entry["content"], special=special, normalized=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"added_tokens_decoder in tokenizer_config.json lacks or misspells {error}.") from None
    n = max(N_RESERVED, max(named, default=n_base) + 1 - n_base)
    if min(named, default=n_base) < n_base or n > MOST_ADDED:
        raise BadRequest(
            f"added_tokens_decoder names ids from {min(named)} to {max(named)}, beside {n_base} in {FILE}."
        )
    reserved = {
        i: AddedToken(f"<|reserved_token_{i}|>", special=True, normalized=False) for i in range(n_base, n_base + n)
    }
    return list((reserved | named).values())


def _text(token: bytes) -> str:
    return "".join(BYTE_LETTERS[byte] for byte in token)
