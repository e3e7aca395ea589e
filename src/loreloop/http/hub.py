"""`/hf`: tokenizers and configurations of served models, where clients of the hub look for them (`HF_ENDPOINT`).

Files are named in a list here, so weights and whatever else lies in a model folder stay in it. No key is needed: such
clients send none of this server's, and the files are those that the model was published with.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from loreloop.http.bodies import answer
from loreloop.http.services import services

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Repository:
    """`files` by their names in the repository, each with the sha1 of its contents; `commit` is a digest of all."""

    name: str
    files: dict[str, Path]
    digests: dict[str, str]
    commit: str


# Plain functions run in a thread: files are read for their digests, once as long as they stay the same.


def resolve(request: Request) -> Response:
    """A file of a served model, with the digest that the hub's clients compare with their cache; 404 in the hub's form
    where there is none."""
    found = repository(request)
    if isinstance(found, Response):
        return found
    # The name is looked up in the list and never joined to a path, so `..` in it cannot leave the folder.
    name = request.path_params["file"]
    headers = {"x-repo-commit": found.commit}
    if name not in found.files:
        about = f"{found.name} has no file {name!r} here; only tokenizers and configurations are given out."
        return refused("EntryNotFound", about, headers)
    headers["etag"] = f'"{found.digests[name]}"'
    return FileResponse(found.files[name], headers=headers, media_type="application/octet-stream")


def about_model(request: Request) -> Response:
    """What the hub says of a model: its commit and the list of its files, which clients ask for before they
    download."""
    found = repository(request)
    if isinstance(found, Response):
        return found
    siblings = [{"rfilename": name} for name in found.files]
    about: dict[str, Any] = {"id": found.name, "modelId": found.name, "sha": found.commit, "siblings": siblings}
    return answer(about | {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []})


def tree(request: Request) -> Response:
    """The files of a model with their sizes in bytes and digests, all of them or those of one folder."""
    found = repository(request)
    if isinstance(found, Response):
        return found
    folder = request.path_params.get("folder", "")
    names = [name for name in found.files if name.startswith(f"{folder}/" if folder else "")]
    if folder and not names:
        return refused("EntryNotFound", f"{found.name} has no folder {folder!r} here.")
    entries = [{"type": "file", "path": name, "oid": found.digests[name], "size": size(found, name)} for name in names]
    return answer(entries)


def repository(request: Request) -> Repository | Response:
    """The one that the address names, or the answer that the hub's clients understand."""
    name, revision = request.path_params["repository"], request.path_params.get("revision", "main")
    folder = services(request).names.tokenizer_folder(name)
    if folder is None:
        return refused("RepoNotFound", f"{name[:200]!r} is not served here; without HF_ENDPOINT clients ask the hub.")
    found = read_repository(name, folder)
    # The commit is made of the contents, so a client that pinned one notices when the model in this folder is another.
    if revision not in ("main", found.commit):
        return refused("RevisionNotFound", f"{name} has the revisions main and {found.commit} here.")
    return found


def read_repository(name: str, folder: Path) -> Repository:
    """The files of a model's folder that may be given out, with their digests and a commit made from these."""
    files = {file: folder / file for file in FILES if (folder / file).is_file()}
    files |= {f"{TEMPLATES}/{file.name}": file for file in sorted((folder / TEMPLATES).glob("*.jinja"))}
    digests = {file: digest(path) for file, path in files.items()}
    # The hub's commits are sha1 digests, and its clients accept nothing of another length.
    commit = hashlib.sha1(repr(sorted(digests.items())).encode(), usedforsecurity=False).hexdigest()
    return Repository(name, files, digests, commit)


def digest(path: Path) -> str:
    """The sha1 of a file's contents; a file is read again when it has changed."""
    now = path.stat()
    return digest_of_state(path, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=1024)  # some hundred models, each with a handful of files
def digest_of_state(path: Path, size: int, mtime_ns: int) -> str:
    """The sha1 of a file; size and time are arguments only so that a changed file misses the cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


def size(found: Repository, name: str) -> int:
    """The size of a file of the repository, in bytes."""
    return found.files[name].stat().st_size


def refused(code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """A 404 in the hub's form: its clients read the code and the message from headers, not from the body."""
    response = answer({"error": message}, 404)
    response.headers.update({"x-error-code": code, "x-error-message": message.encode("ascii", "replace").decode()})
    response.headers.update(headers or {})
    return response


API = "/api/models/{repository:path}"
ROUTES = [
    Route(f"{API}/revision/{{revision}}", about_model, methods=["GET"]),
    Route(f"{API}/tree/{{revision}}/{{folder:path}}", tree, methods=["GET"]),
    Route(f"{API}/tree/{{revision}}", tree, methods=["GET"]),
    Route(API, about_model, methods=["GET"]),
    Route("/{repository:path}/resolve/{revision}/{file:path}", resolve, methods=["GET"]),
]
