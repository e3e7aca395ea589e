"""Work in a second thread: what it gives and raises, when pauses come, and that files are the same beside samples."""

import hashlib
import threading
from pathlib import Path

import pytest

from loreloop.config import EngineConfig
from loreloop.engine.aside import Aside
from loreloop.engine.local import LocalEngine
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.training import (
    AdamParams,
    CreateModel,
    LoadState,
    LoraSpec,
    OptimStep,
    SaveExternal,
    SaveSampler,
    SaveState,
)
from tests.engine.sample_rig import sample_op
from tests.engine.train_rig import datum, random_tokens, train_pass
from tests.tiny import make_tiny_model


def test_pauses_come_as_long_as_the_work_goes_on():
    enough, n_pauses = threading.Event(), 0

    def pause():
        nonlocal n_pauses
        n_pauses += 1
        if n_pauses == 3:
            enough.set()

    assert Aside(alone=True).done(lambda: enough.wait(60), pause)
    assert n_pauses >= 3


def test_what_the_work_raises_is_raised():
    def work():
        raise BadRequest("no")

    with pytest.raises(BadRequest, match="no"):
        Aside(alone=True).done(work, lambda: None)


def test_what_a_pause_raises_waits_for_the_end_of_the_work():
    may_end, ended = threading.Event(), threading.Event()

    def work():
        may_end.wait(60)
        ended.set()

    def pause():
        may_end.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Aside(alone=True).done(work, pause)
    assert ended.is_set()


def test_of_several_processes_each_works_where_it_is_asked():
    """A pause there would come at another place than on the others."""
    thread = Aside(alone=False).done(threading.current_thread, lambda: pytest.fail("a pause"))
    assert thread is threading.current_thread()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def lived(folder: Path, data: Path, pauses: bool) -> dict[str, str]:
    """The files of one script over three models of which one fits into memory; with samples in every pause, or none."""
    config = EngineConfig(device="cpu", precision="fp32", threads=1, kv_cache_mib=1, resident_models=1)
    engine = LocalEngine(config, "tiny", folder, data / "work")
    drawn = 0

    def pause():
        nonlocal drawn
        if not engine.sampling:
            engine.admit(sample_op(random_tokens(8, drawn), request=f"r{drawn}", max_tokens=3))
        drawn += len(engine.sample_step())

    beside = (pause,) if pauses else ()
    for model in "abc":
        engine.create_model(CreateModel(model, 0, f"{model}:0", LoraSpec(4, 1)), *beside)
    for seq, model in enumerate("abcabc"):
        engine.train([train_pass(datum(random_tokens(20, seq)), model=model)], *(beside or (lambda: None,)))
        engine.optim_step(OptimStep(model, seq, f"{model}:{seq}", AdamParams(learning_rate=1e-2)), *beside)
        engine.save_state(SaveState(model, seq, "s", str(data / f"state{seq}")), *beside)
        engine.save_sampler(SaveSampler(model, seq, "w", str(data / f"weights{seq}"), f"v{seq}"), *beside)
    engine.load_state(LoadState("a", 9, "l", str(data / "state1"), True), *beside)
    engine.save_external(SaveExternal("a", 10, "e", str(data / "export")), *beside)
    engine.snapshot(str(data / "snapshots"), 1, *beside)
    assert bool(drawn) == pauses
    files = [file for file in sorted(data.rglob("*")) if file.is_file() and "work" not in file.parts]
    return {str(file.relative_to(data)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_files_are_the_same_whether_or_not_samples_are_drawn_meanwhile(folder, tmp_path):
    files = lived(folder, tmp_path / "beside", True)
    assert len(files) > 20
    assert files == lived(folder, tmp_path / "alone", False)
