"""Writes a model's tokenizer into a Hugging Face cache under any name, so that clients that only know that name find
it offline (`HF_HUB_OFFLINE=1`).

The cache's layout: models--org--name/refs/main names a snapshot, snapshots/<it>/ holds the files.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

MARK = ".written-by-loreloop"
TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
)


def write_tokenizer(folder: Path, name: str, cache: Path | None = None) -> Path:
    """Puts the tokenizer of `folder` under `name` (org/name); gives the snapshot's folder. Weights stay out."""
    files = [folder / file for file in TOKENIZER_FILES if (folder / file).exists()]
    digest = hashlib.sha1(b"".join(file.read_bytes() for file in files), usedforsecurity=False).hexdigest()
    repository = (cache or Path(HF_HUB_CACHE)) / f"models--{name.replace('/', '--')}"
    main = repository / "refs" / "main"
    snapshot = repository / "snapshots" / digest
    if main.exists() and not (repository / MARK).exists():
        return repository / "snapshots" / main.read_text().strip()  # a real copy of that name stays as it is
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in files:
        copy = snapshot / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    main.parent.mkdir(exist_ok=True)
    main.write_text(digest)
    (repository / MARK).touch()
    return snapshot
