"""litellm, as its callers name OpenAI's and Anthropic's APIs."""

import json

import litellm
import pydantic
from scenes import ANTHROPIC, GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell

PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PLACE}}


class Forecast(pydantic.BaseModel):
    city: str
    days: int


def scenes(provider, address):
    def ask(messages, **fields):
        usual = {"api_base": address, "api_key": KEY, "max_tokens": 500, "num_retries": 0}
        return litellm.completion(model=f"{provider}/{MODEL}", messages=messages, **usual | fields)

    def tool_round_trip(stream):
        heard, history = Weather(), asked(QUESTION)
        while True:
            answer = ask(history, tools=[TOOL], stream=stream)
            answer = litellm.stream_chunk_builder(list(answer)) if stream else answer
            message = answer.choices[0].message
            history.append(message)
            for call in message.tool_calls or ():
                told = heard.ask(json.loads(call.function.arguments)["city"])
                history.append({"role": "tool", "tool_call_id": call.id, "content": told})
            if not message.tool_calls:
                return {"heard": heard.cities, "answer": message.content}

    return {
        "plain": lambda: ask(asked(GREETING)).choices[0].message.content,
        "streamed": lambda: [chunk.choices[0].delta.content or "" for chunk in ask(asked(GREETING), stream=True)],
        "tool": lambda: tool_round_trip(stream=False),
        "streamed tool": lambda: tool_round_trip(stream=True),
        "structured": lambda: json.loads(ask(asked(QUESTION), response_format=Forecast).choices[0].message.content),
    }


def asked(text):
    return [{"role": "user", "content": text}]


tell({"openai": scenes("openai", OPENAI), "anthropic": scenes("anthropic", ANTHROPIC)})
