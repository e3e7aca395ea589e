"""What a request's address says, read alike by the routes of all dialects: page sizes and checkpoints. Pure."""

from __future__ import annotations

from starlette.requests import Request

from loreloop.protocol.errors import BadRequest
from loreloop.protocol.paths import CheckpointPath, parse_path

MAX_PAGE = 1000
LARGEST_NUMBER = (1 << 63) - 1  # of a row


def limit_of(request: Request, usual: int = MAX_PAGE, most: int = MAX_PAGE) -> int:
    """The page size that the request asks for; BadRequest unless it is a whole number from 1 to `most`."""
    text = request.query_params.get("limit", str(usual))
    # The length is bounded first: a number of a million digits takes long to read.
    limit = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not 1 <= limit <= most:
        raise BadRequest(f"limit is {text[:20]!r}; it must be a whole number from 1 to {most}.")
    return limit


def number_of(request: Request, name: str, usual: int = 0) -> int:
    """A whole number that the request's query names; BadRequest unless it is one from 0 to the largest of the store."""
    text = request.query_params.get(name, str(usual))
    # The length is bounded first here as well.
    if not text.isdecimal() or len(text) > len(str(LARGEST_NUMBER)) or int(text) > LARGEST_NUMBER:
        raise BadRequest(f"{name} is {text[:20]!r}; it must be a whole number from 0 to {LARGEST_NUMBER}.")
    return int(text)


def checkpoint_path(request: Request) -> CheckpointPath:
    """The checkpoint that the request's address names; BadRequest where it cannot be one."""
    params = request.path_params
    return parse_path(f"tinker://{params['run_id']}/{params['kind']}/{params['name']}")
