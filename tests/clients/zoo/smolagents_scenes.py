"""smolagents: its model, and its agent that calls tools."""

from scenes import GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell
from smolagents import OpenAIModel, ToolCallingAgent, tool

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def model():
    return OpenAIModel(model_id=MODEL, api_base=OPENAI, api_key=KEY)


def asked(text):
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def tool_round_trip(stream):
    heard = Weather()

    @tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: where
        """
        return heard.ask(city)

    agent = ToolCallingAgent(tools=[weather], model=model(), stream_outputs=stream, max_steps=3, verbosity_level=0)
    return {"heard": heard.cities, "answer": str(agent.run(QUESTION))}


def structured():
    import json

    form = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA, "strict": True}}
    return json.loads(model().generate(asked(QUESTION), response_format=form).content)


tell(
    {
        "chat": {
            "plain": lambda: model().generate(asked(GREETING)).content,
            "streamed": lambda: [part.content or "" for part in model().generate_stream(asked(GREETING))],
            "tool": lambda: tool_round_trip(stream=False),
            "streamed tool": lambda: tool_round_trip(stream=True),
            "structured": structured,
        }
    }
)
