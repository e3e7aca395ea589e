"""SampleCollector: events in, one result out; stop strings end a sample; a resumed stream goes on behind its tokens."""

from pathlib import Path

import msgspec
import numpy as np

from loreloop.engine.contract import PromptEvent, TokenEvent
from loreloop.protocol.sampling import Partial, PromptReport, SampledSequence, SampleOp, StopReason, TopK
from loreloop.scheduler.sample_collector import SampleCollector
from loreloop.text.answers import AnswerParts
from loreloop.text.stops import StopMatcher
from tests.scheduler.ops import sample
from tests.scheduler.words import WordMatcher
from tests.text.samples import byte_level


def collector(op: SampleOp) -> SampleCollector:
    return SampleCollector(op, WordMatcher)  # type: ignore[arg-type]


def token(index: int, token: int, finished: StopReason | None = None) -> TokenEvent:
    return TokenEvent("r", index, token, -token / 10, finished)


def partial(*tokens: int) -> Partial:
    return Partial(np.array(tokens, "<i4").tobytes(), (-np.array(tokens, "<f4") / 10).tobytes())


def resuming(op: SampleOp) -> SampleOp:
    return msgspec.structs.replace(op, resume=(partial(7, 8),))


def ids(sequence: SampledSequence) -> list[int]:
    return np.frombuffer(sequence.tokens, "<i4").tolist()


def test_samples_of_one_request_are_kept_apart() -> None:
    both = collector(sample("r", n=2))
    both.prompt(PromptEvent("r", PromptReport(b"x"), 7))
    for event in (token(1, 4), token(0, 5, "stop"), token(1, 6, "length")):
        assert not both.token(event)
    result = both.result()
    assert [ids(s) for s in result.sequences] == [[5], [4, 6]]
    assert [s.stop_reason for s in result.sequences] == ["stop", "length"]
    assert (result.prompt.logprobs, result.cache_hit_tokens) == (b"x", 7)
    assert np.frombuffer(result.sequences[1].logprobs, "<f4").tolist() == np.array([-0.4, -0.6], "<f4").tolist()


def test_a_stop_string_ends_a_sample_and_stays_in_it() -> None:
    stopped = collector(sample("r", stop=("4 5",)))
    assert [stopped.token(token(0, t)) for t in (3, 4, 5)] == [False, False, True]
    assert stopped.complete
    assert ids(stopped.result().sequences[0]) == [3, 4, 5]
    assert stopped.result().sequences[0].stop_reason == "stop"


def test_a_stop_string_at_the_last_token_counts_as_a_stop() -> None:
    last = collector(sample("r", stop=("5",)))
    assert not last.token(token(0, 5, "length"))  # the engine has ended it by itself
    assert last.result().sequences[0].stop_reason == "stop"


def test_a_stop_string_that_only_the_end_decides_on_counts_as_a_stop(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    op = sample("r", stop=("<th",))
    ended = SampleCollector(op, lambda params: StopMatcher(tokenizer, params.stop_strings, AnswerParts(opened=False)))
    *tokens, last = tokenizer.encode("yes <thi")  # which might have become the beginning of a thought
    assert not any(ended.token(token(0, each)) for each in tokens)
    assert not ended.token(token(0, last, "length"))
    assert ended.result().sequences[0].stop_reason == "stop"


def test_a_stop_string_of_one_sample_leaves_the_others_running() -> None:
    two = collector(sample("r", n=2, stop=("5",)))
    assert two.token(token(0, 5))
    assert not two.complete
    assert two.finished() == [0]


def test_top_k_rows_are_put_together() -> None:
    op = sample("r")
    whole = collector(op)
    for at, finished in ((1, None), (2, "length")):
        row = TopK(np.array([at, 9], "<i4").tobytes(), np.array([-at, -9], "<f4").tobytes(), 2, 1)
        whole.token(TokenEvent("r", 0, at, -1.0, finished, row))  # type: ignore[arg-type]
    topk = whole.result().sequences[0].topk
    assert topk is not None
    assert (topk.k, topk.length) == (2, 2)
    assert np.frombuffer(topk.token_ids, "<i4").tolist() == [1, 9, 2, 9]


def test_a_resumed_stream_begins_with_what_it_had_shown() -> None:
    op = resuming(sample("r", max_tokens=3))
    resumed = collector(op)
    assert not resumed.complete
    resumed.token(token(0, 9, "length"))
    assert ids(resumed.result().sequences[0]) == [7, 8, 9]


def test_a_resumed_stream_may_be_over_already() -> None:
    for op, reason in (
        (sample("r", max_tokens=2), "length"),
        (sample("r", max_tokens=9, stop=("7 8",)), "stop"),
    ):
        over = collector(resuming(op))
        assert over.complete
        assert over.result().sequences[0].stop_reason == reason
