"""Anthropic's own client for Python."""

import anthropic
import pydantic
from scenes import ANTHROPIC, GREETING, KEY, MODEL, QUESTION, Weather, tell

client = anthropic.Anthropic(base_url=ANTHROPIC, api_key=KEY, max_retries=0)


class Forecast(pydantic.BaseModel):
    city: str
    days: int


def asked(text):
    return {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": text}]}


def streamed():
    with client.messages.stream(**asked(GREETING)) as stream:
        return list(stream.text_stream)


def tool_round_trip(stream):
    heard = Weather()

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return heard.ask(city)

    runner = client.beta.messages.tool_runner(tools=[weather], stream=stream, **asked(QUESTION))
    last = [step.get_final_message() if stream else step for step in runner][-1]
    return {"heard": heard.cities, "answer": last.content[0].text}


def structured():
    return client.messages.parse(output_format=Forecast, **asked(QUESTION)).parsed_output.model_dump()


tell(
    {
        "messages": {
            "plain": lambda: client.messages.create(**asked(GREETING)).content[0].text,
            "streamed": streamed,
            "tool": lambda: tool_round_trip(stream=False),
            "streamed tool": lambda: tool_round_trip(stream=True),
            "structured": structured,
        }
    }
)
