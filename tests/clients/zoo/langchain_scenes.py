"""LangChain's models for OpenAI's two APIs and Anthropic's: messages, streams, bound tools, structured output."""

import pydantic
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from scenes import ANTHROPIC, GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell


class Forecast(pydantic.BaseModel):
    """A forecast of the weather."""

    city: str
    days: int = pydantic.Field(description="how many")


def scenes(model, **structured):
    def tool_round_trip(stream):
        heard = Weather()

        @tool
        def weather(city: str) -> str:
            """The weather of a city."""
            return heard.ask(city)

        able, history = model.bind_tools([weather]), [HumanMessage(QUESTION)]
        for _ in range(2):
            answer = summed(able.stream(history)) if stream else able.invoke(history)
            history.append(answer)
            for call in answer.tool_calls:
                history.append(ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]))
        return {"heard": heard.cities, "answer": history[-1].text}

    return {
        "plain": lambda: model.invoke(GREETING).text,
        "streamed": lambda: [part.text for part in model.stream(GREETING)],
        "tool": lambda: tool_round_trip(stream=False),
        "streamed tool": lambda: tool_round_trip(stream=True),
        "structured": lambda: model.with_structured_output(Forecast, **structured).invoke(QUESTION).model_dump(),
    }


def summed(parts):
    whole = None
    for part in parts:
        whole = part if whole is None else whole + part
    return whole


openai = {"model": MODEL, "base_url": OPENAI, "api_key": KEY, "max_retries": 0}
anthropic = ChatAnthropic(model=MODEL, base_url=ANTHROPIC, api_key=KEY, max_retries=0, max_tokens=500)
tell(
    {
        "chat": scenes(ChatOpenAI(**openai)),
        "chat, by a function": scenes(ChatOpenAI(**openai), method="function_calling"),
        "chat, in JSON": {
            "structured": lambda: (
                ChatOpenAI(**openai).with_structured_output(Forecast, method="json_mode").invoke(QUESTION).model_dump()
            )
        },
        "responses": scenes(ChatOpenAI(use_responses_api=True, **openai)),
        "messages": scenes(anthropic),
        "messages, by a schema": scenes(anthropic, method="json_schema"),
    }
)
