"""A real server is asked what its OpenAPI document allows, and what it does not: it may refuse, and must not fail."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from loreloop.cli.server import RunningServer

CASES = 2  # of each route, of either kind
# The first gives the key up by which is asked; the second waits on purpose.
LEFT_OUT = ("/api/v1/auth/apikey/me", "/loop/v1/happenings")
BOUNDS = settings(
    max_examples=CASES,
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@schemathesis.serializer("application/x-protobuf")
def as_it_is(_context: schemathesis.SerializationContext, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.mark.slow
def test_no_route_fails_on_what_the_document_allows_or_does_not(server: RunningServer) -> None:
    schema = schemathesis.openapi.from_dict(httpx.get(f"{server.url}/openapi.json").json())
    schema.config.update(base_url=server.url)
    asked: Counter[str] = Counter()
    failed: list[str] = []

    def ask(case: schemathesis.Case) -> None:
        answer = case.call(headers={"x-api-key": server.key}, timeout=20)
        asked[f"{case.method} {case.path}"] += 1
        if answer.status_code >= 500:
            failed.append(f"{answer.status_code} {case.as_curl_command()}: {answer.text[:300]}")

    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            if operation.path not in LEFT_OUT:
                drive(operation.as_strategy(generation_mode=mode), ask)
    assert not failed, "\n".join(failed)
    assert len(asked) > 100
    assert sum(asked.values()) > 200


def drive(cases: object, ask: Callable[[schemathesis.Case], None]) -> None:
    """Asks some cases. Of a route that takes nothing there are none that it would refuse."""
    with contextlib.suppress(Unsatisfiable):
        BOUNDS(given(cases)(ask))()  # type: ignore[arg-type]
