"""Our safetensors writer against the library's reader."""

import resource
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from loreloop.formats.tensor_file import DTYPE_NAMES, write_stream, write_tensors
from loreloop.protocol.checksums import sum_of

SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.builds(
    lambda shape, dtype: torch.randint(0, 9, shape).to(dtype), SHAPES, st.sampled_from(sorted(DTYPE_NAMES, key=str))
)


@given(tensors=st.dictionaries(st.text('abc.é"\\', min_size=1, max_size=8), TENSORS, max_size=5))
def test_the_library_reads_back_what_is_written(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    assert write_tensors(path, tensors) == sum_of(path)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == t.dtype and torch.equal(read[name], t) for name, t in tensors.items())


@pytest.mark.parametrize("view", [torch.arange(12.0).view(3, 4).T, torch.arange(12.0)[5:9], torch.arange(12.0)[::2]])
def test_views_are_written_as_what_they_show(tmp_path, view):
    write_tensors(tmp_path / "file", {"view": view})
    assert torch.equal(load_file(tmp_path / "file")["view"], view)


def test_neighbours_in_memory_are_written_whole_and_apart_from_others(tmp_path):
    flat, other = torch.arange(40, dtype=torch.bfloat16), torch.ones(3)
    tensors = {"a": flat[:8], "b": flat[8:20].view(3, 4), "none": flat[20:20], "gap": flat[24:30], "other": other}
    tensors |= {"again": flat[:8], "turned": flat[30:36].view(2, 3).T, "last": flat[36:]}
    write_tensors(tmp_path / "file", tensors)
    read = load_file(tmp_path / "file")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_metadata_is_kept(tmp_path):
    write_tensors(tmp_path / "file", {"x": torch.ones(1)}, {"plan": "7"})
    with safe_open(str(tmp_path / "file"), framework="pt") as file:
        assert file.metadata() == {"plan": "7"}


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for value in (1.0, 2.0):
        write_tensors(tmp_path / "file", {"x": torch.full((3,), value)})
    assert load_file(tmp_path / "file")["x"].tolist() == [2.0] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing_and_ends_no_process(tmp_path):
    """What a copy of tensors holds is summed by a second thread: it is let go of only behind that."""
    n_bytes = 256 << 20  # so much that the system takes the memory back at once

    def stream():
        yield [torch.ones(n_bytes // 8, 2).T]  # written from a copy, which only the stream holds

    code = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, code[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="too large"):
            write_stream(tmp_path / "file", {"x": torch.empty(2, n_bytes // 8, device="meta")}, stream())
    finally:
        signal.signal(signal.SIGXFSZ, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, code)
    assert [*tmp_path.iterdir()] == []
