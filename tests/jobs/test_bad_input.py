"""What cannot be learned from or asked for is refused at once with its place, or fails its own job and no other."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import openai
import pytest
from PIL import Image

from tests.jobs.rig import (
    DEMONSTRATIONS,
    as_lines,
    ended,
    started,
    succeeded,
    supervised,
    told,
    uploaded,
)

GOOD = told("a", "b")


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def shown(url: str) -> dict[str, Any]:
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a dot"}]}


def preference(**fields: Any) -> dict[str, Any]:
    answer = [{"role": "assistant", "content": "x"}]
    whole = {"input": {"messages": GOOD["messages"][:1]}, "preferred_output": answer, "non_preferred_output": answer}
    return {name: value for name, value in (whole | fields).items() if value is not None}


WRONG_IMAGES = {
    "an image elsewhere": ("http://example.com/a.png", "a file holds its images as data:image/png;base64"),
    "an image whose base64 is cut": ("data:image/png;base64,iVBOR", "its base64 is broken"),
    "an image that is none": ("data:image/png;base64,aGVsbG8gd29ybGQ=", "its bytes are no png image"),
    "an image of another kind": (picture().replace("png", "jpeg", 1), "its bytes are no jpeg image"),
}
BAD_FILES = {
    **{
        name: (as_lines([GOOD, shown(url)]), f"Line 2: messages\\[0\\].content\\[1\\].image_url.url is .*{said}")
        for name, (url, said) in WRONG_IMAGES.items()
    },
    "empty": (b"", "The file is empty"),
    "blank": (b"\n  \n", "The file is empty"),
    "no JSON": (as_lines([GOOD]) + b"once upon a time\n", "Line 2: is not JSON"),
    "one JSON text over many lines": (json.dumps([GOOD], indent=1).encode(), "Line 1: is not JSON"),
    "a list": (b"[1]\n", "Line 1: holds \\[1\\]; a JSON object"),
    "no text at all": (b"\xff\xfe\x00\n", "Line 1: is not JSON"),
    "a role nobody knows": (
        as_lines([GOOD, {"messages": [{"role": "wizard", "content": "x"}, *GOOD["messages"]]}]),
        'Line 2: messages\\[0\\].role is "wizard"',
    ),
    "no answer": (as_lines([GOOD, {"messages": [{"role": "system", "content": "x"}]}]), "Line 2: messages hold no"),
    "a field nobody knows": (as_lines([GOOD | {"mesages": []}]), "Line 1: mesages is not known"),
    "no rejected answer": (
        as_lines([preference(), preference(non_preferred_output=None)]),
        "Line 2: non_preferred_out",
    ),
    "two forms": (
        as_lines([GOOD, preference()]),
        "Line 2: is one of preferences, and the first line one of demonstrations; send two files",
    ),
    "a mark without a label": (as_lines([{"prompt": "a", "completion": "b"}]), "Line 1: label is missing"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_line_and_field(client: openai.OpenAI, name: str) -> None:
    contents, message = BAD_FILES[name]
    before = len(list(client.files.list()))
    with pytest.raises(openai.BadRequestError, match=message):
        uploaded(client, contents)
    assert len(list(client.files.list())) == before


def test_a_large_bad_file_is_refused_likewise(client: openai.OpenAI) -> None:
    contents = as_lines([GOOD]) * 80_000
    assert len(contents) > 4 << 20
    with pytest.raises(openai.BadRequestError, match="Line 80001: is not JSON"):
        uploaded(client, contents + b"x\n")
    client.files.delete(uploaded(client, contents))


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


BAD_JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "a base that is not served": ({"model": "gpt-4o-mini"}, "not served here"),
    "a tuned model that is not there": ({"model": "ft:tiny:a::b"}, "not served here"),
    "a run that is not there": ({"model": "tinker://nobody/weights/x"}, "no checkpoint"),
    "no epochs": (
        {"method": supervised(n_epochs=0)},
        "Expected `int` >= 1 .*hyperparameters.n_epochs`. Here it is one of: whole numbers from 1 to 50, auto.",
    ),
    "too many epochs": ({"method": supervised(n_epochs=51)}, "n_epochs"),
    "an empty batch": ({"method": supervised(batch_size=0)}, "batch_size"),
    "a word for a number": ({"method": supervised(batch_size="many")}, "batch_size"),
    "a negative rate": (
        {"method": supervised(learning_rate_multiplier=-1)},
        "learning_rate_multiplier`. Here it is one of: numbers above 0 to 100, auto.",
    ),
    "a beta of nothing": ({"method": dpo(beta=0)}, "beta"),
    "an unknown hyperparameter": ({"method": supervised(depth=2)}, "depth"),
    "an unknown method": ({"method": {"type": "magic"}}, "magic|type"),
    "a method with another's field": (
        {"method": supervised() | dpo() | {"type": "supervised"}},
        "has a field for 'dpo'",
    ),
    "no grader": ({"method": {"type": "reinforcement"}}, "needs a grader"),
    "both forms": ({"method": supervised(), "hyperparameters": {"n_epochs": 1}}, "beside `method`"),
    "an integration": ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "`integrations`"),
    "a long suffix": ({"suffix": "x" * 65}, "suffix"),
    "a negative seed": ({"seed": -1}, "seed"),
    "much metadata": ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    "a field nobody knows": ({"extra_body": {"budget": 3}}, "`budget` is not served"),
    "demonstrations for preferences": ({"method": dpo()}, "holds demonstrations, and the method dpo learns from"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_a_bad_request_is_refused_by_the_field(client: openai.OpenAI, name: str) -> None:
    fields, message = BAD_JOBS[name]
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=message):
        started(client, **fields)


def test_files_that_cannot_be_learned_from_are_refused(client: openai.OpenAI) -> None:
    other = client.files.create(file=("a.txt", b"anything"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose is 'user_data'"):
        client.fine_tuning.jobs.create(model="tiny", training_file=other.id)
    with pytest.raises(openai.NotFoundError, match="no file 'file-x'"):
        client.fine_tuning.jobs.create(model="tiny", training_file="file-x")
    preferences = uploaded(client, as_lines([preference()]))
    with pytest.raises(openai.BadRequestError, match="validation_file holds preferences"):
        started(client, validation_file=preferences)


def test_images_are_refused_for_a_text_model(client: openai.OpenAI) -> None:
    seen = shown(picture())
    with pytest.raises(openai.BadRequestError, match="holds images, and tiny takes text only"):
        started(client, as_lines([seen]))
    with pytest.raises(openai.BadRequestError, match="validation_file holds images, and tiny takes text only"):
        started(client, validation_file=uploaded(client, as_lines([seen])))


def test_an_example_beyond_the_window_fails_its_own_job_and_no_other(client: openai.OpenAI) -> None:
    other = started(client, DEMONSTRATIONS, method=supervised(n_epochs=3))
    job = ended(client, started(client, as_lines([GOOD, told("a", "b " * 20_000)])).id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_data", "training_file")
    assert job.error.message.startswith("Example 2 has ")
    assert job.fine_tuned_model is None
    succeeded(client, other.id)
