"""A request for a fine-tuning job as a plan with every blank filled; what cannot be done is refused here, at once."""

from __future__ import annotations

import re
import secrets

import msgspec

from loreloop.http.openai.answer_format import format_json, is_strict, schema_of
from loreloop.http.openai.files import FINE_TUNE, body_of
from loreloop.http.services import Services, may_use
from loreloop.learn.jobs.choose import chosen
from loreloop.learn.jobs.contents import Contents, Form
from loreloop.learn.rewards.graders.reading import grader_of, models_of
from loreloop.protocol.errors import BadRequest
from loreloop.protocol.fine_tuning_rest import CreateJob, Method, Reinforcement, Supervised, asked_of
from loreloop.protocol.jobs import JobKind, JobPlan
from loreloop.protocol.paths import SCHEME
from loreloop.store import uploads
from loreloop.store.job_rows import FileRow
from loreloop.store.rows import KeyRow
from loreloop.text.grammars.sandbox import HeldSchemas, Rules, WantedSchema

MISSING = (
    "Fine-tuning jobs are not served here: they need the Tinker SDK (`pip install 'loreloop[learn]'`) and "
    "limits.running_jobs above 0; start the server anew with both."
)
# Which forms of examples each kind of job learns from.
FORMS: dict[JobKind, tuple[Form, ...]] = {
    "supervised": ("demonstrations",),
    "dpo": ("preferences", "marks"),
    "reinforcement": ("tasks",),
}


async def plan_of(served: Services, key: KeyRow, body: CreateJob) -> JobPlan:
    """The plan; BadRequest or NotFound names the field that is at fault."""
    if not served.has_worker:
        raise BadRequest(MISSING)
    method = method_of(body)
    beginning = served.names.beginning(served.store, key, body.model)
    training = examples(served, key, body.training_file, method.type, "training_file")
    kind: JobKind = "kto" if training.forms == ("marks",) else method.type
    shown = {"training_file": training.has_images}
    if body.validation_file is not None:
        held_out = examples(served, key, body.validation_file, method.type, "validation_file")
        shown["validation_file"] = held_out.has_images
        if ("marks" in held_out.forms) != (kind == "kto"):
            raise BadRequest(
                f"validation_file holds {held_out.forms[0]} and training_file {training.forms[0]}; send the same kind."
            )
    if any(shown.values()) and (await served.dispatcher.info(beginning.base_model)).images is None:
        file = next(file for file, has_images in shown.items() if has_images)
        raise BadRequest(f"{file} holds images, and {beginning.base_model} takes text only; choose a vision model.")
    asked = asked_of(getattr(getattr(method, method.type), "hyperparameters", None))
    decided = chosen(kind, asked, training.n_examples, served.names.folder(beginning.base_model))
    reinforced, held = method.reinforcement, HeldSchemas()
    if reinforced is not None:
        check_grader(served, key, reinforced)
        held = await answers_held_to(served, reinforced, beginning.base_model)
    return JobPlan(
        model=body.model,
        base_model=beginning.base_model,
        kind=kind,
        training_file=body.training_file,
        validation_file=body.validation_file,
        hyperparameters=decided.hyperparameters,
        learning_rate=decided.learning_rate,
        seed=body.seed if body.seed is not None else secrets.randbits(31),
        name=name_of(body, beginning.base_model, key),
        start_path=beginning.state_path,
        suffix=body.suffix,
        grader=reinforced.grader if reinforced else None,
        metadata=body.metadata,
        response_format=format_json(reinforced.response_format) if reinforced else None,
        answer_schema=held.schemas[0] if held.schemas else None,
        left_out=held.left_out,
    )


def method_of(body: CreateJob) -> Method:
    """The method that is meant; without one it is supervised, by OpenAI's older form."""
    if body.integrations:
        raise BadRequest("`integrations` are not served here: no other service is told of a job. Leave them out.")
    if body.method is not None and body.hyperparameters is not None:
        raise BadRequest("The request has `hyperparameters` beside `method`; put them into the method.")
    method = body.method or Method(type="supervised", supervised=Supervised(hyperparameters=body.hyperparameters))
    others = [name for name in ("supervised", "dpo", "reinforcement") if name != method.type and getattr(method, name)]
    if others:
        raise BadRequest(f"The method is {method.type!r} and has a field for {others[0]!r}; leave that out.")
    if method.type == "reinforcement" and method.reinforcement is None:
        raise BadRequest("The method reinforcement needs a grader, in `method.reinforcement.grader`.")
    return method


def check_grader(served: Services, key: KeyRow, reinforced: Reinforcement) -> None:
    """BadRequest where a grader is none; NotFound where it asks a model that this key has not."""
    for name in models_of(grader_of(reinforced.grader, "method.reinforcement.grader")):
        may_use(key, name)
        served.names.target(served.store, key, name)


async def answers_held_to(served: Services, reinforced: Reinforcement, base_model: str) -> HeldSchemas:
    """The schema that the answers of a job are held to by its response format, and what of it is left out. BadRequest
    where a model's answers cannot be held to it, or a strict one only in part."""
    schema = schema_of(reinforced.response_format)
    if schema is None:
        return HeldSchemas()
    wanted = WantedSchema("the response format", schema, is_strict(reinforced.response_format))
    held = await served.sandbox.held((wanted,))
    # Tried now, so that a job does not fail at its first answer.
    await served.sandbox.grammar_of(Rules(None, held.schemas[0], None), await served.dispatcher.info(base_model))
    return held


def examples(served: Services, key: KeyRow, file_id: str, method: JobKind, field: str) -> Contents:
    """What is known of a file's examples; BadRequest where they are none for this method."""
    row: FileRow = served.store.read(uploads.get, key.id, file_id)
    if row.purpose != FINE_TUNE or row.contents is None:
        raise BadRequest(
            f"{field} names {file_id}, whose purpose is {row.purpose!r}; upload it with the purpose {FINE_TUNE!r}."
        )
    body_of(served, row)
    contents = msgspec.convert(row.contents, Contents)
    if not set(contents.forms) & set(FORMS[method]):
        raise BadRequest(
            f"{field} holds {contents.forms[0]}, and the method {method} learns from {' or '.join(FORMS[method])}."
        )
    return contents


def name_of(body: CreateJob, base_model: str, key: KeyRow) -> str:
    """A new model's name in OpenAI's form, `ft:BASE:owner:suffix:id`; of a model that was tuned already its base."""
    parts = body.model.split(":")
    base = parts[1] if parts[0] == "ft" else base_model if body.model.startswith(SCHEME) else body.model
    return f"ft:{_plain(base)}:{_plain(key.name)}:{_plain(body.suffix or '')}:{secrets.token_hex(4)}"


def _plain(text: str) -> str:
    """Without what a name's parts cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
