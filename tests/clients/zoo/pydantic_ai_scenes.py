"""pydantic-ai's agents, over OpenAI's two APIs and Anthropic's."""

import pydantic
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from scenes import ANTHROPIC, GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell


class Forecast(pydantic.BaseModel):
    city: str
    days: int


def scenes(model, native=True):
    def agent(heard=None, **fields):
        made = Agent(model, retries=0, **fields)
        if heard:

            @made.tool_plain
            def weather(city: str) -> str:
                """The weather of a city."""
                return heard.ask(city)

        return made

    def tool_round_trip():
        heard = Weather()
        return {"heard": heard.cities, "answer": agent(heard).run_sync(QUESTION).output}

    async def streamed():
        async with agent().run_stream(GREETING) as result:
            return [part async for part in result.stream_text(delta=True, debounce_by=None)]

    async def streamed_tool():
        heard = Weather()
        async with agent(heard).run_stream(QUESTION) as result:
            return {"heard": heard.cities, "answer": await result.get_output()}

    def structured(output):
        return agent(output_type=output).run_sync(QUESTION).output.model_dump()

    def both():
        heard = Weather()
        found = agent(heard, output_type=Forecast).run_sync(QUESTION).output.model_dump()
        assert heard.cities == ["Oslo"]
        return found

    def second_turn():
        made = agent()
        first = made.run_sync(GREETING)
        return made.run_sync(GREETING, message_history=first.all_messages()).output

    by_schema = {"structured by a schema": lambda: structured(NativeOutput(Forecast))}
    return (by_schema if native else {}) | {
        "plain": lambda: agent().run_sync(GREETING).output,
        "second turn": second_turn,
        "streamed": streamed,
        "tool": tool_round_trip,
        "streamed tool": streamed_tool,
        "structured": lambda: structured(Forecast),
        "structured by a prompt": lambda: structured(PromptedOutput(Forecast)),
        "structured after a tool": both,
    }


openai = OpenAIProvider(base_url=OPENAI, api_key=KEY)
anthropic = AnthropicProvider(base_url=ANTHROPIC, api_key=KEY)
tell(
    {
        "chat": scenes(OpenAIChatModel(MODEL, provider=openai)),
        "responses": scenes(OpenAIResponsesModel(MODEL, provider=openai)),
        # It sends schemas to Anthropic's own models only, by their names.
        "messages": scenes(AnthropicModel(MODEL, provider=anthropic), native=False),
    }
)
