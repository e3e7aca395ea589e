"""`GET /openapi.json`: the routes for programs as an OpenAPI document, for other tools and for tests that send what it
allows and what it does not.

Routes and their words are read from the application itself; what their bodies are is said here. Pages for people are
left out, and OpenAI's routes stand there once, though they are mounted twice. Knows no service.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from loreloop import __version__
from loreloop.http.anthropic import messages
from loreloop.http.bodies import answer
from loreloop.http.loop import feedback, links, standing, turns
from loreloop.http.openai import chat_completions, completions, fine_tuning, graders, responses
from loreloop.http.operations import deployments, memories, person_arms
from loreloop.http.tinker import downloads, futures, runs, sampling, session_lists, sessions, sharing, training
from loreloop.protocol import anthropic_rest, feedback_rest, loop_rest, openai_rest, rest
from loreloop.protocol.fine_tuning_rest import CreateJob
from loreloop.protocol.responses_rest import CreateResponse

LEFT_OUT = ("/ui", "/oai/api/v1")
SCHEMAS = "#/components/schemas/{name}"
Endpoint: TypeAlias = Callable[..., Any]
Bodies: TypeAlias = dict[Endpoint, dict[str, Any]]
BODIES: dict[Endpoint, type] = {
    sessions.create_session: rest.CreateSession,
    sessions.heartbeat: rest.Heartbeat,
    sessions.finish_session: rest.FinishSession,
    session_lists.set_project: rest.SessionProject,
    session_lists.search_sessions: rest.SearchSessions,
    sampling.create_sampling_session: rest.CreateSamplingSession,
    sampling.join_sampling_session: rest.SamplingSessionId,
    sampling.asample: rest.SampleBody,
    downloads.save_weights_external: rest.SaveExternalBody,
    sharing.copy_weights: rest.CopyWeightsBody,
    training.create_model: rest.CreateModelBody,
    training.optim_step: rest.OptimStepBody,
    training.save_weights: rest.SaveWeightsBody,
    training.save_weights_for_sampler: rest.SaveForSamplerBody,
    training.load_weights: rest.LoadWeightsBody,
    training.get_info: rest.ModelId,
    runs.set_ttl: rest.TtlBody,
    runs.weights_info: rest.WeightsInfoBody,
    futures.retrieve_future: rest.RetrieveFuture,
    futures.retrieve_futures: rest.RetrieveFutures,
    futures.cancel_future: rest.RequestId,
    deployments.set_deployment: loop_rest.SetDeployment,
    person_arms.set_person: loop_rest.SetPerson,
    memories.forget: loop_rest.ForgetMemory,
    memories.resize: loop_rest.ResizeMemory,
    links.make_link: feedback_rest.NewLink,
    standing.tell_standing: loop_rest.LoopStanding,
    turns.mark_turn: loop_rest.MarkTurn,
    turns.use_turns: loop_rest.UseTurns,
    feedback.give_feedback: feedback_rest.GiveFeedback,
    feedback.tensorzero_feedback: feedback_rest.TensorZeroFeedback,
    feedback.make_token: feedback_rest.NewToken,
    messages.messages: anthropic_rest.Messages,
    messages.count_tokens: anthropic_rest.CountTokens,
    completions.completions: openai_rest.Completion,
    chat_completions.chat_completions: openai_rest.ChatCompletion,
    responses.responses: CreateResponse,
    responses.count_input: CreateResponse,
    graders.validate_grader: openai_rest.GraderCheck,
    graders.run_grader: openai_rest.GraderRun,
    fine_tuning.create: CreateJob,
}
PROTOBUF = "application/x-protobuf"
OTHER_BODIES: dict[str, str] = {  # by the endpoint's name: bodies that are no JSON
    "forward_backward": PROTOBUF,
    "upload": "multipart/form-data",
    "answer_page": "application/x-www-form-urlencoded",
}
ONWARDS, BY_OFFSET = ("limit", "after"), ("limit", "offset")
QUERIES: dict[str, Sequence[str]] = {  # names in the address, by the endpoint's name
    "audit_log": ("event_type", "day"),
    "usage_events": ("starting_on", "ending_before"),
    "stored_now": ("project_id",),
    "download": ("expires", "signature"),
    "list_runs": (*BY_OFFSET, "project_id"),
    "list_sessions": (*BY_OFFSET, "access_scope"),
    "list_deployments": ONWARDS,
    "get_history": ("limit",),
    "show_happenings": (*ONWARDS, "of", "seconds"),
    "delete_run": ("force",),
    "list_persons": ("limit",),
    "get_person": ("key",),
    "remove_person": ("key",),
    "list_memories": (*BY_OFFSET, "user"),
    "deleted_persons": ONWARDS,
    "list_turns": (*ONWARDS, "fate", "user"),
    "get_episode": ONWARDS,
    "feedback_feed": ONWARDS,
    "list_files": (*ONWARDS, "order", "purpose"),
    "retrieve": ("stream",),
    "input_items": (*ONWARDS, "order"),
    "models": (*ONWARDS, "after_id"),
    "list_jobs": (*ONWARDS, "metadata"),
    "events": (*ONWARDS, "stream"),
    "checkpoints": ONWARDS,
}


async def openapi(request: Request) -> Response:
    """This document."""
    app = request.app
    if not hasattr(app.state, "openapi"):  # once: routes do not change
        app.state.openapi = document(app.routes)
    return answer(app.state.openapi)


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes."""
    # Names of types that several modules have are made longer by the library, so that it must say which is whose.
    references, schemas = msgspec.json.schema_components(BODIES.values(), ref_template=SCHEMAS)
    bodies = dict(zip(BODIES, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for prefix, route in _flat(routes):
        path = re.sub(r"\{(\w+):path\}", r"{\1}", prefix + route.path)
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(method, path, route, bodies)
    error = {"detail": {"type": "string"}, "error": {"type": "object"}, "type": {"const": "error"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Loreloop", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": _as_elsewhere(schemas) | {"Error": {"type": "object", "properties": error}},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}],
    }


def _flat(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, Route]]:
    for route in routes:
        if isinstance(route, Route):
            yield "", route
        elif isinstance(route, Mount) and route.path not in LEFT_OUT:
            yield from ((route.path, inner) for inner in route.routes if isinstance(inner, Route))


def _operation(method: str, path: str, route: Route, bodies: Bodies) -> dict[str, Any]:
    name = route.endpoint.__name__
    words = inspect.cleandoc(route.endpoint.__doc__ or name)
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "summary": words.partition(".")[0].replace("\n", " "),
        "tags": [path.split("/")[1]],
        "responses": {
            "default": {
                "description": "An answer, or what is wrong: docs/errors.md.",
                "content": {"application/json": {"schema": {}}},
            }
        },
    }
    parameters = [_parameter(one, "path") for one in re.findall(r"\{(\w+)\}", path)]
    parameters += [_parameter(one, "query") for one in QUERIES.get(name, ())]
    if parameters:
        found["parameters"] = parameters
    if schema := bodies.get(route.endpoint):
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif media := OTHER_BODIES.get(name):
        schema = {"type": "string", "format": "binary"} if media == PROTOBUF else {"type": "object"}
        found["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    return found


def _parameter(name: str, where: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}


def _as_elsewhere(value: Any) -> Any:
    """Patterns in the words of JSON Schema, which has other signs for the beginning and the end of a text."""
    if isinstance(value, dict):
        return {
            name: re.sub(r"\\A", "^", re.sub(r"\\Z", "$", each))
            if name == "pattern" and isinstance(each, str)
            else _as_elsewhere(each)
            for name, each in value.items()
        }
    return [_as_elsewhere(each) for each in value] if isinstance(value, list) else value


ROUTES = [Route("/openapi.json", openapi, methods=["GET"])]
