"""instructor, in each of its ways to ask for a schema, around OpenAI's client and Anthropic's."""

import anthropic
import instructor
import openai
import pydantic
from scenes import ANTHROPIC, KEY, MODEL, OPENAI, QUESTION, tell


class Forecast(pydantic.BaseModel):
    city: str
    days: int


FIELDS = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 500,
    "response_model": Forecast,
    "max_retries": 0,
}


def by_openai(mode):
    return instructor.from_openai(openai.OpenAI(base_url=OPENAI, api_key=KEY, max_retries=0), mode=mode)


def by_anthropic(mode):
    return instructor.from_anthropic(anthropic.Anthropic(base_url=ANTHROPIC, api_key=KEY, max_retries=0), mode=mode)


def scenes(client):
    return {
        "structured": lambda: client.chat.completions.create(**FIELDS).model_dump(),
        "streamed structured": lambda: [*client.chat.completions.create_partial(**FIELDS)][-1].model_dump(),
        "structured list": lambda: [found.model_dump() for found in client.chat.completions.create_iterable(**FIELDS)],
    }


MODES = instructor.Mode
tell(
    {mode.value: scenes(by_openai(mode)) for mode in (MODES.TOOLS, MODES.JSON, MODES.JSON_SCHEMA, MODES.MD_JSON)}
    | {mode.value: scenes(by_anthropic(mode)) for mode in (MODES.ANTHROPIC_TOOLS, MODES.ANTHROPIC_JSON)}
)
