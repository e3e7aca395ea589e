"""The tokenizer and the template of a served model, fetched from its server, where no folder of the model is at hand.

Knows the route `/hf` of Loreloop's servers, over whatever HTTP client it is given, and no training.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from loreloop.protocol.errors import BadRequest, Unavailable


def fetch_texts(http: httpx.Client, model: str, folder: Path) -> Path:
    """Fills a folder with the files of a model that `renderer_of` reads. `http` has the server's address as its base.
    BadRequest where the server gives none out, Unavailable where it does not answer."""
    try:
        about = http.get(f"/hf/api/models/{model}")
        if about.status_code == 404:
            raise BadRequest(
                f"The server at {http.base_url} gives out no tokenizer of {model!r}; see which models it serves, or "
                "name a folder with --texts."
            )
        about.raise_for_status()
        for name in (entry["rfilename"] for entry in about.json()["siblings"]):
            found = http.get(f"/hf/{model}/resolve/main/{name}").raise_for_status()
            # A name is the server's word, and must not lead out of the folder.
            file = (folder / name).resolve()
            if not file.is_relative_to(folder.resolve()):
                raise BadRequest(f"The server at {http.base_url} names a file {name!r} that lies outside of a model.")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(found.content)
    except httpx.HTTPError as error:
        raise Unavailable(f"The server at {http.base_url} does not answer: {error}. Start it, or mend --url.") from None
    return folder
