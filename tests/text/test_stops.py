"""Stop strings in growing texts, against looking for them in the whole text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loreloop.text.answers import THINK, AnswerParts
from loreloop.text.stops import StopMatcher, StopTrimmer
from loreloop.text.streaming_detokenizer import StreamingDetokenizer
from loreloop.text.tokenizer import TextTokenizer
from loreloop.text.tools.tool_calls import Content
from loreloop.text.tools.tool_formats import HERMES
from loreloop.text.tools.tool_reader import ReplyReader
from tests.text.samples import byte_level, with_word_marks

TEXTS = st.text(st.sampled_from("abé <🐙"), max_size=24)
STRINGS = st.lists(st.text(st.sampled_from("abé <🐙"), min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.fixture(scope="module", params=[byte_level, with_word_marks])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return byte_level(tmp_path_factory.mktemp("bytes"))


def first_stop(tokenizer: TextTokenizer, tokens: list[int], strings: list[str]) -> int | None:
    """The number of tokens whose text first holds a stop string."""
    for n in range(1, len(tokens) + 1):
        if any(string in tokenizer.decode(tokens[:n]) for string in strings):
            return n
    return None


def matched(tokenizer: TextTokenizer, tokens: list[int], strings: list[str]) -> int | None:
    matcher = StopMatcher(tokenizer, strings)
    return next((n for n, token in enumerate(tokens, 1) if matcher.push(token)), None)


@given(text=TEXTS, strings=STRINGS)
def test_a_stop_is_noticed_with_the_token_that_completes_it(
    tokenizer: TextTokenizer, text: str, strings: list[str]
) -> None:
    tokens = tokenizer.encode(text)
    assert matched(tokenizer, tokens, strings) == first_stop(tokenizer, tokens, strings)


@given(tokens=st.lists(st.integers(0, 260), max_size=24), strings=STRINGS)
def test_random_tokens_stop_where_their_text_does(
    bytes_only: TextTokenizer, tokens: list[int], strings: list[str]
) -> None:
    assert matched(bytes_only, tokens, strings) == first_stop(bytes_only, tokens, strings)


def test_a_stop_may_be_cut_anywhere_by_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    tokens = tokenizer.encode("Human: x")
    assert matched(tokenizer, tokens, ["n: "]) == first_stop(tokenizer, tokens, ["n: "]) is not None


def test_a_special_token_can_be_a_stop_string(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert matched(tokenizer, tokenizer.encode("ab<|im_end|>c"), ["<|im_end|>"]) == 3


def test_without_strings_nothing_stops(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    assert matched(tokenizer, tokenizer.encode("anything"), []) is None


@given(parts=st.lists(TEXTS, max_size=8), strings=STRINGS)
def test_a_trimmed_stream_ends_before_the_first_stop(parts: list[str], strings: list[str]) -> None:
    trimmer = StopTrimmer(strings)
    shown = "".join(trimmer.push(part) for part in parts) + trimmer.flush()
    text = "".join(parts)
    # A stop that begins earlier but is completed in a later part loses to one that was whole before.
    ends = [at for n in range(len(parts) + 1) for at in [_first(text[: len("".join(parts[:n]))], strings)] if at >= 0]
    assert shown == (text[: ends[0]] if ends else text)


def _first(text: str, strings: list[str]) -> int:
    return min((at for string in strings if (at := text.find(string)) >= 0), default=-1)


@given(parts=st.lists(TEXTS, max_size=8), strings=STRINGS)
def test_nothing_shown_is_taken_back(parts: list[str], strings: list[str]) -> None:
    trimmer, shown = StopTrimmer(strings), ""
    for part in parts:
        shown += trimmer.push(part)
        assert "".join(parts).startswith(shown)
        assert not any(string in shown for string in strings)


THOUGHTS = st.lists(st.sampled_from(["<think>", "</think>", "a", "b", " ", "\n", "<", "<th", "ab"]), max_size=12)
IN_ANSWERS = st.lists(st.text(st.sampled_from("ab \n<t"), min_size=1, max_size=3), min_size=1, max_size=2)


def answer_of(text: str, opened: bool) -> str:
    """What a reader of replies calls the answer."""
    reader = ReplyReader(HERMES, thinking=True, tools_allowed=False, opened=opened)
    return "".join(piece.text for piece in [*reader.push(text), *reader.flush()] if isinstance(piece, Content))


@given(texts=THOUGHTS, strings=IN_ANSWERS, opened=st.booleans())
def test_stops_count_in_the_answer_only(texts: list[str], strings: list[str], opened: bool) -> None:
    trimmer = StopTrimmer(strings, AnswerParts(opened=opened))
    shown = "".join(trimmer.push(part) for part in texts) + trimmer.flush()
    text = "".join(texts)
    assert text.startswith(shown)
    said = answer_of(shown, opened)
    if trimmer.found is None:
        assert shown == text
    else:
        assert text[len(shown) :].startswith(trimmer.found)
    # A thought may stand between two parts of an answer, so that they make a stop string only together.
    pieces = AnswerParts(opened=opened)
    searched = [part.text for part in [*pieces.push(shown), *pieces.flush()] if part.answer]
    assert not any(string in part for part in searched for string in strings)
    assert "".join("".join(searched).split()) == "".join(said.split())


@given(texts=THOUGHTS, strings=IN_ANSWERS, opened=st.booleans())
def test_engine_and_text_find_the_same_end(
    bytes_only: TextTokenizer, texts: list[str], strings: list[str], opened: bool
) -> None:
    tokens = bytes_only.encode("".join(texts))
    matcher = StopMatcher(bytes_only, strings, AnswerParts(opened=opened))
    growing = StreamingDetokenizer(bytes_only, (), strings, THINK, AnswerParts(opened=opened))
    for token in tokens:
        growing.push(token)
        assert matcher.push(token) == (growing.trimmer.found is not None)
        if growing.trimmer.found is not None:
            return
    growing.flush()
    assert matcher.flush() == (growing.trimmer.found is not None)


def test_a_stop_in_what_might_have_become_a_thought_is_found_at_the_end(bytes_only: TextTokenizer) -> None:
    matcher = StopMatcher(bytes_only, ["<th"], AnswerParts(opened=False))
    assert not any(matcher.push(token) for token in bytes_only.encode("yes <thi"))
    assert matcher.flush()


def test_white_space_behind_a_thought_is_no_answer() -> None:
    trimmer = StopTrimmer(["\n\n"], AnswerParts(opened=True))
    assert trimmer.push("hm\n\n</think>\n\nyes\n\nmore") == "hm\n\n</think>\n\nyes"


def test_what_cannot_become_a_stop_is_shown_at_once() -> None:
    trimmer = StopTrimmer(["END"])
    assert [trimmer.push(part) for part in ("a", "bE", "N", "xE", "ND", "more")] == ["a", "b", "", "ENx", "", ""]
    assert trimmer.flush() == ""
