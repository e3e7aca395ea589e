"""Pages out of templates: what is put in is escaped, bounded, its unseen letters shown; or JSON in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from loreloop import __version__
from loreloop.http.bodies import answer
from loreloop.http.services import ADMIN, INFER, TRAIN, has
from loreloop.http.ui.visits import form_token
from loreloop.store.rows import KeyRow

TEMPLATES = Path(__file__).parent / "templates"
MOST_SHOWN = 20_000  # characters of one text; the JSON of the page has all of it
# Letters that a terminal obeys, that turn the direction of what follows, or that are there and cannot be seen.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
# Nothing but our own files, whatever a text smuggled in; and no page of another site around ours.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# Title, address, and the scope that the page asks for; "": one for single deployments is enough.
NAVIGATION = (
    ("Runs", "/ui/runs", INFER),
    ("Jobs", "/ui/jobs", TRAIN),
    ("Deployments", "/ui/deployments", ""),
    ("Memories", "/ui/memories", ""),
    ("Playground", "/ui/playground", ""),
    ("Operation", "/ui/operation", ADMIN),
    ("Keys", "/ui/keys", ADMIN),
    ("Audit log", "/ui/audit", ADMIN),
)


def harmless(value: Any) -> Any:
    """A value as it may be shown: letters that cannot be seen by their numbers, and no more than a page can hold."""
    if value is None:
        return ""
    if isinstance(value, dict | list | tuple):
        value = str(value)  # in which Python itself writes unseen letters by their numbers
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    cut = value[:MOST_SHOWN].replace("\r\n", "\n")
    seen = UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", cut)
    return f"{seen} … ({len(value)} characters)" if len(value) > MOST_SHOWN else seen


def moment(seconds: float | None) -> Markup:
    """Seconds since the epoch as a time in UTC, an empty text for None."""
    if seconds is None:
        return Markup("")
    found = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(found.isoformat(), found.strftime("%Y-%m-%d %H:%M:%S"))


def size(n_bytes: int) -> str:
    """Bytes in the unit that keeps the number short."""
    amount, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"


def data(value: Any) -> str:
    """A value as JSON, which is then escaped as any text."""
    return msgspec.json.encode(value).decode()


def number(value: float | None) -> str:
    """A number in four digits, or whole with its thousands apart; an empty text for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def memory_query(memory: Mapping[str, Any]) -> str:
    """The part of an address that names a memory: its user may be written in any letters, unseen ones too."""
    return urlencode({"id": memory["id"], "user": memory["user"] or ""})


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=harmless,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"data": data, "moment": moment, "size": size, "number": number, "memory_query": memory_query}


def wants_json(request: Request) -> bool:
    """Whether a program asks: it says so, since browsers ask for HTML and many programs for anything."""
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def render(
    request: Request, template: str, data: Mapping[str, Any], drawn: Mapping[str, Any] | None = None, status: int = 200
) -> Response:
    """The page, or `data` as JSON; `drawn` is what only the page needs, such as curves."""
    if wants_json(request):
        return answer(dict(data), status)
    return HTMLResponse(fragment(request, template, {**data, **(drawn or {})}), status)


def fragment(request: Request, template: str, context: Mapping[str, Any]) -> str:
    """A template with what every page has around it."""
    key: KeyRow | None = request.scope["state"].get("page_key")
    entries = [
        {"title": title, "address": address, "is_here": request.url.path.startswith(address)}
        for title, address, scope in NAVIGATION
        if key is not None and (has(key, scope or INFER) or (key.deployments and not scope))
    ]
    around = {
        "navigation": entries,
        "key_name": key.name if key is not None else "",
        "form_token": form_token(request),
        "version": __version__,
    }
    return ENVIRONMENT.get_template(template).render({**around, **context})
