"""A disk that fills up while the server runs: who asked for something to be kept is told so and comes back later."""

import errno
import logging

import pytest

from loreloop.protocol.training import Failure
from loreloop.scheduler.error_boundary import within_boundary
from loreloop.store.segments import Segments
from tests.http.site import Site, new_model, passing, play


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_journal_that_cannot_grow_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(site: Site) -> None:
        model_id = await site.model()
        with monkeypatch.context() as broken:
            broken.setattr(Segments, "append", full)
            refused = await site.train(passing(model_id, 1))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
            assert "No space left" in refused.json()["detail"]
        accepted = await site.train(passing(model_id, 1))  # there is room again
        assert (await site.future(accepted.json()["request_id"])).status_code == 200

    play(scene)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_database_that_cannot_grow_is_nobodys_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(site: Site) -> None:
        session_id = await site.session()

        def bounded(connection) -> None:  # type: ignore[no-untyped-def]
            n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={n_pages}")

        await site.services.store.write(bounded)
        name = {"user_metadata": {"much": "x" * 100_000}}
        refused = await site.post("/create_model", new_model(session_id, **name))
        assert refused.status_code == 503, refused.text
        assert "No space left" in refused.json()["detail"]

    play(scene, engine=True)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: … (os error 28)")]
)
def test_an_engine_that_cannot_save_says_why(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def save() -> None:
        raise error

    failure = within_boundary(save)
    assert isinstance(failure, Failure)
    assert (failure.category, "No space left" in failure.message) == ("server", True)
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.ERROR, None)]
