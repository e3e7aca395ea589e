"""The style and the scripts of the pages, out of a list: nothing else of the folder, or of any other, is given out."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from loreloop.http.ui.frame import NOTHING, page_route
from loreloop.protocol.errors import NotFound

FOLDER = Path(__file__).parent / "static"
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}


async def give_file(request: Request) -> Response:
    """A file of the pages. It needs no key, since it says nothing of this server."""
    path = FILES.get(str(request.path_params["file"]))
    if path is None:
        raise NotFound(NOTHING)
    return FileResponse(path, media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})


async def nothing_here(request: Request) -> Response:
    """The answer to every other address below the pages."""
    raise NotFound(NOTHING)


ROUTES = [page_route("/static/{file}", give_file)]
LAST_ROUTES = [page_route("/{path:path}", nothing_here)]
