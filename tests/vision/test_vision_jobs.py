"""A fine-tuning job on images, through OpenAI's client: a vision model learns from them, one of text is refused."""

import openai
import pytest

from loreloop.cli.server import RunningServer
from tests.jobs.rig import as_lines, client_of, result_rows, started, succeeded, supervised
from tests.vision.test_vision_learning import LINES


def test_a_job_learns_from_images(seeing: RunningServer) -> None:
    client = client_of(seeing)
    method = supervised(n_epochs=10, batch_size=2, learning_rate_multiplier=10)
    done = succeeded(client, started(client, as_lines(LINES), model="eyes", method=method).id)
    losses = [float(row["train_loss"]) for row in result_rows(client, done)]
    assert losses[-1] < losses[0]
    answer = client.chat.completions.create(
        model=done.fine_tuned_model or "", messages=LINES[0]["messages"][:1], max_tokens=4
    )
    assert answer.choices[0].message.content is not None


def test_images_are_refused_for_a_model_of_text(seeing: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="holds images, and blind takes text only"):
        started(client_of(seeing), as_lines(LINES), model="blind")
