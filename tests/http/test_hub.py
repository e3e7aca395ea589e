"""`/hf`: what a repository's files are known by is computed once as long as they stay the same."""

import hashlib
import os
from pathlib import Path

import pytest

from loreloop.http.hub import read_repository


def test_files_are_read_for_their_digests_only_after_they_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read, digest_of = 0, hashlib.file_digest

    def counted(*arguments: object) -> object:
        nonlocal n_read
        n_read += 1
        return digest_of(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("[1]")
    (tmp_path / "model.safetensors").write_text("weights")
    first = read_repository("org/model", tmp_path)
    assert first.digests["tokenizer.json"] == hashlib.sha1(b"[1]").hexdigest()
    assert read_repository("org/model", tmp_path) == first
    assert n_read == len(first.files) == 2
    before = (tmp_path / "tokenizer.json").stat()
    (tmp_path / "tokenizer.json").write_text("[2]")  # of the same size
    os.utime(tmp_path / "tokenizer.json", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = read_repository("org/model", tmp_path)
    assert changed.digests["tokenizer.json"] == hashlib.sha1(b"[2]").hexdigest()
    assert changed.digests["config.json"] == first.digests["config.json"]
    assert changed.commit != first.commit
    assert n_read == 3
