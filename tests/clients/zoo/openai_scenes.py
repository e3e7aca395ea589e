"""OpenAI's own client for Python, over chat and responses."""

import json

import openai
import pydantic
from scenes import GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell

client = openai.OpenAI(base_url=OPENAI, api_key=KEY, max_retries=0)


class Forecast(pydantic.BaseModel):
    city: str
    days: int


class Place(pydantic.BaseModel):
    """The weather of a city."""

    city: str


def asked(text):
    return [{"role": "user", "content": text}]


def by_chat(stream):
    heard, history = Weather(), asked(QUESTION)
    fields = {"model": MODEL, "messages": history, "tools": [openai.pydantic_function_tool(Place, name="weather")]}
    while True:
        if stream:
            with client.chat.completions.stream(**fields) as events:
                answer = events.get_final_completion().choices[0].message
        else:
            answer = client.chat.completions.parse(**fields).choices[0].message
        history.append(answer)
        for call in answer.tool_calls or ():
            told = heard.ask(call.function.parsed_arguments.city)
            history.append({"role": "tool", "tool_call_id": call.id, "content": told})
        if not answer.tool_calls:
            return {"heard": heard.cities, "answer": answer.content}


def by_responses(stream):
    heard, history = Weather(), asked(QUESTION)
    tool = {"type": "function", "name": "weather", "parameters": Place.model_json_schema(), "strict": False}
    fields = {"model": MODEL, "input": history, "tools": [tool]}
    while True:
        if stream:
            with client.responses.stream(**fields) as events:
                answer = events.get_final_response()
        else:
            answer = client.responses.create(**fields)
        history += answer.output
        calls = [item for item in answer.output if item.type == "function_call"]
        for call in calls:
            told = heard.ask(json.loads(call.arguments)["city"])
            history.append({"type": "function_call_output", "call_id": call.call_id, "output": told})
        if not calls:
            return {"heard": heard.cities, "answer": answer.output_text}


def streamed_chat():
    chunks = client.chat.completions.create(model=MODEL, messages=asked(GREETING), stream=True)
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]


def streamed_response():
    events = client.responses.create(model=MODEL, input=GREETING, stream=True)
    return [event.delta for event in events if event.type == "response.output_text.delta"]


def parsed_chat():
    answer = client.chat.completions.parse(model=MODEL, messages=asked(QUESTION), response_format=Forecast)
    return answer.choices[0].message.parsed.model_dump()


tell(
    {
        "chat": {
            "plain": lambda: (
                client.chat.completions.create(model=MODEL, messages=asked(GREETING)).choices[0].message.content
            ),
            "streamed": streamed_chat,
            "tool": lambda: by_chat(stream=False),
            "streamed tool": lambda: by_chat(stream=True),
            "structured": parsed_chat,
        },
        "responses": {
            "plain": lambda: client.responses.create(model=MODEL, input=GREETING).output_text,
            "streamed": streamed_response,
            "tool": lambda: by_responses(stream=False),
            "streamed tool": lambda: by_responses(stream=True),
            "structured": lambda: client.responses.parse(
                model=MODEL, input=QUESTION, text_format=Forecast
            ).output_parsed.model_dump(),
        },
    }
)
