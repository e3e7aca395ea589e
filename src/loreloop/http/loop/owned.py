"""Which deployments a key may look into: those that it owns, those of nobody, and with `admin` all."""

from __future__ import annotations

from starlette.requests import Request

from loreloop.http.services import ADMIN, has, services
from loreloop.protocol.errors import NotFound
from loreloop.store import deployments
from loreloop.store.rows import Deployment, KeyRow


def owned_deployment(request: Request, key: KeyRow) -> Deployment:
    """The deployment that the path names; NotFound where this key may not look into it."""
    name = str(request.path_params["name"])
    found = services(request).store.read(deployments.find, name)
    if found is None or not (has(key, ADMIN) or found.key_id in (None, key.id)):
        raise NotFound(f"There is no deployment {name[:128]!r} of this key.")
    return found
