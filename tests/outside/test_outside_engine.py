"""The face of a sampler outside, asked as the scheduler asks it, over a stand-in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from loreloop.engine.contract import SampleEvent, SampleFailed, TokenEvent
from loreloop.engine.fake import FakeEngine
from loreloop.outside.outside_engine import OutsideEngine, SamplerLost, seed_of
from loreloop.outside.server import SamplerServer
from loreloop.protocol.errors import BadRequest, ServerError, Unavailable
from loreloop.protocol.sampling import Partial, Revision, SampleOp
from loreloop.protocol.token_ids import pack_ids, pack_logprobs
from loreloop.protocol.training import Failure
from tests.host.sampler import Sampler, sampler, token_at
from tests.scheduler.ops import create, sample


def engine(outside: Sampler, *, max_resident: int = 2, max_running: int = 8) -> OutsideEngine:
    info = FakeEngine().info
    server = SamplerServer(outside.url)
    return OutsideEngine(server, info, owner="me", max_resident=max_resident, max_running=max_running)


def events(
    engine: OutsideEngine, enough: Callable[[list[SampleEvent]], bool] = lambda found: False
) -> list[SampleEvent]:
    found: list[SampleEvent] = []
    deadline = time.monotonic() + 20
    while engine.sampling and not enough(found) and time.monotonic() < deadline:
        found += engine.sample_step()
    return found


def tokens(found: list[SampleEvent], index: int = 0) -> list[int]:
    return [one.token for one in found if isinstance(one, TokenEvent) and one.sample_index == index]


def named(adapter: str) -> str:
    """The revision by whose name an adapter is known there."""
    return adapter.split("-")[3]


def of_revision(folder: Path, name: str) -> SampleOp:
    (folder / name).mkdir(exist_ok=True)
    file = folder / name / "adapter_config.json"
    if not file.exists():
        file.write_text("{}")
    return msgspec.structs.replace(sample(name), revision=Revision(name, str(folder / name)))


def test_samples_of_a_request_are_drawn_apart_and_end_by_length_and_stop() -> None:
    with sampler() as outside:
        drawing = engine(outside)
        assert drawing.admit(sample("r", n=2, max_tokens=5))
        found = events(drawing)
        seeds = [seed_of(5, index, b"") for index in (0, 1)]
        texts = [[token_at("their-name", seed, 3 + at) for at in range(5)] for seed in seeds]
        assert [tokens(found, index) for index in (0, 1)] == texts
        op = sample("s", max_tokens=5)
        stop = token_at("their-name", seeds[0], 4)
        assert drawing.admit(
            msgspec.structs.replace(op, params=msgspec.structs.replace(op.params, stop_tokens=(stop,)))
        )
        last = events(drawing)[-1]
        assert isinstance(last, TokenEvent)
        assert (last.token, last.finished) == (stop, "stop")


def test_a_resumed_sample_goes_on_behind_what_was_shown() -> None:
    with sampler() as outside:
        drawing = engine(outside)
        shown = pack_ids([7, 8])
        resume = (Partial(shown, pack_logprobs([-1.0, -1.0])),)
        assert drawing.admit(msgspec.structs.replace(sample("r", max_tokens=5), resume=resume))
        found = events(drawing)
        assert tokens(found) == [token_at("their-name", seed_of(5, 0, shown), 3 + at) for at in range(2, 5)]
        assert found[-1].finished == "length"  # type: ignore[union-attr]


def test_adapters_are_handed_over_once_and_the_coldest_is_taken_back(tmp_path: Path) -> None:
    with sampler() as outside:
        drawing = engine(outside, max_resident=2)
        for name in ("a", "b", "a", "c", "a"):
            assert drawing.admit(of_revision(tmp_path, name))
            events(drawing)
        asked = [(path.split("/")[2], named(body["lora_name"])) for path, body in outside.log if "lora_name" in body]
        loads = [("load_lora_adapter", name) for name in "abc"]
        assert asked == [*loads[:2], ("unload_lora_adapter", "b"), loads[2]]
        assert (drawing.meters.resident_revisions, drawing.meters.revision_hits) == (2, 2)
        drawing.drop_revision("a")
        assert [named(name) for name in outside.adapters] == ["c"]


def test_an_adapter_in_use_is_not_taken_back(tmp_path: Path) -> None:
    with sampler(token_seconds=0.05) as outside:
        drawing = engine(outside, max_resident=1)
        for name in ("a", "b"):
            assert drawing.admit(of_revision(tmp_path, name))
        found = events(drawing)
        assert {one.request_id: one.finished for one in found if isinstance(one, TokenEvent)} == {
            "a": "length",
            "b": "length",
        }


def test_a_refused_adapter_fails_its_request_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with sampler() as outside:
        drawing = engine(outside)
        assert drawing.admit(msgspec.structs.replace(sample("r"), revision=Revision("no", str(tmp_path))))
        assert drawing.admit(sample("s"))
        found = events(drawing)
        (failed,) = (one for one in found if isinstance(one, SampleFailed))
        assert failed.request_id == "r"
        assert failed.failure.passing, "that it cannot read a folder is no fault of who asks"
        assert "no adapter there" not in failed.failure.message
        assert "no adapter there" in caplog.text
        assert len(tokens(found)) == 3


def test_of_a_cancelled_sample_nothing_comes_and_its_connection_is_closed() -> None:
    with sampler(token_seconds=0.01) as outside:
        drawing = engine(outside)
        assert drawing.admit(sample("r", max_tokens=100_000))
        events(drawing, lambda found: len(tokens(found)) > 2)
        drawing.cancel_sample("r")
        assert not drawing.sampling
        assert drawing.admit(sample("s"))
        assert {one.request_id for one in events(drawing)} == {"s"}


def test_there_is_room_for_so_many() -> None:
    with sampler(token_seconds=0.01) as outside:
        drawing = engine(outside, max_running=2)
        assert drawing.admit(sample("r", n=2))
        assert not drawing.admit(sample("s"))
        events(drawing)
        assert drawing.admit(sample("s", n=5)), "alone it may have more"
        drawing.cancel_sample("s")


def test_a_lost_server_ends_the_engine_and_no_request() -> None:
    with sampler(token_seconds=0.01) as outside:
        drawing = engine(outside)
        assert drawing.admit(sample("r", max_tokens=100_000))
        events(drawing, lambda found: len(tokens(found)) > 2)
        outside.broken = True
        with pytest.raises(SamplerLost):
            events(drawing)


def failure_of(found: list[SampleEvent], request_id: str = "r") -> Failure:
    (failed,) = (one for one in found if isinstance(one, SampleFailed))
    assert failed.request_id == request_id
    return failed.failure


WRONG, LATER = ("user", False), ("server", True)


@pytest.mark.parametrize(("status", "kind"), [(429, LATER), (500, LATER), (503, LATER), (400, WRONG)])
def test_what_it_answers_is_told_in_our_words(
    status: int, kind: tuple[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    with sampler() as outside:
        drawing = engine(outside)
        outside.refusals = [status]
        assert drawing.admit(sample("r"))
        failure = failure_of(events(drawing))
        assert (failure.category, failure.passing) == kind
        assert "raw words" not in failure.message
        assert "raw words" in caplog.text


TOO_LARGE = json.dumps({"choices": [{"token_ids": [10**6], "logprobs": {"token_logprobs": [-1.0]}}]})


@pytest.mark.parametrize("instead", ["{", "[]", '{"choices": ["a"]}', '{"error": "no"}', "[DONE]", TOO_LARGE])
def test_one_stream_that_goes_wrong_fails_its_sample_alone(instead: str) -> None:
    with sampler(token_seconds=0.01) as outside:
        drawing = engine(outside)
        assert drawing.admit(sample("s", max_tokens=50))
        found = events(drawing, lambda found: len(tokens(found)) > 2)
        outside.instead = [instead]
        assert drawing.admit(sample("r"))
        found += events(drawing)
        # Which of the two meets it is left to chance.
        (failed,) = (one for one in found if isinstance(one, SampleFailed))
        assert failed.failure.passing
        (other,) = {"r", "s"} - {failed.request_id}
        assert [one.finished for one in found if isinstance(one, TokenEvent) and one.request_id == other][
            -1
        ] == "length"


def test_samples_of_requests_and_of_seeds_that_follow_one_another_are_drawn_apart() -> None:
    seeds = [seed_of(seed, index, shown) for seed in range(20) for index in range(20) for shown in (b"", b"1234")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 31 for seed in seeds)


def test_weights_that_are_saved_anew_under_one_path_are_handed_over_anew(tmp_path: Path) -> None:
    with sampler() as outside:
        drawing = engine(outside)
        op = of_revision(tmp_path, "a")
        for text in ("{}", "{ }"):
            (tmp_path / "a" / "adapter_config.json").write_text(text)
            assert drawing.admit(op)
            events(drawing)
        assert len(outside.adapters) == 2
        drawing.drop_revision("a")
        assert not outside.adapters


def test_what_an_earlier_process_has_handed_over_is_taken_back(tmp_path: Path) -> None:
    with sampler() as outside:
        outside.adapters["theirs"] = "elsewhere"
        assert engine(outside).admit(of_revision(tmp_path, "a"))
        (before,) = set(outside.adapters) - {"theirs"}
        again = engine(outside)
        assert set(outside.adapters) == {"theirs"}
        assert again.admit(of_revision(tmp_path, "a"))
        events(again)
        assert before not in outside.adapters, "it may have answered under that name with other weights"


def test_a_sampler_that_was_started_anew_is_handed_the_adapter_again(tmp_path: Path) -> None:
    with sampler() as outside:
        drawing = engine(outside)
        op = of_revision(tmp_path, "a")
        assert drawing.admit(op)
        events(drawing)
        outside.adapters.clear()
        assert drawing.admit(op)
        assert failure_of(events(drawing), "a").passing
        assert drawing.admit(op)
        assert len(tokens(events(drawing))) == 3


def test_what_is_no_sampler_is_refused() -> None:
    with pytest.raises(Unavailable, match="does not say what it serves"):
        SamplerServer("http://127.0.0.1:9").base_model()
    for url in ("http://[x", "host:8000", "http://", "ftp://host"):
        with pytest.raises(BadRequest, match="is none"):
            SamplerServer(url)


def test_it_does_not_train() -> None:
    with sampler() as outside, pytest.raises(ServerError, match="only samples"):
        engine(outside).create_model(create("m"))
