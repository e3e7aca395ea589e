"""The openai-agents framework, over chat and responses."""

import agents
import openai
import pydantic
from scenes import GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell

agents.set_tracing_disabled(True)


class Forecast(pydantic.BaseModel):
    city: str
    days: int


def scenes(kind):
    def agent(heard=None, **fields):
        def weather(city: str) -> str:
            """The weather of a city."""
            return heard.ask(city)

        model = kind(MODEL, openai_client=openai.AsyncOpenAI(base_url=OPENAI, api_key=KEY, max_retries=0))
        tools = [agents.function_tool(weather)] if heard else []
        return agents.Agent(name="a", model=model, tools=tools, **fields)

    async def plain():
        return (await agents.Runner.run(agent(), GREETING)).final_output

    async def streamed():
        result = agents.Runner.run_streamed(agent(), GREETING)
        raw = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
        return [event.delta for event in raw if event.type == "response.output_text.delta"]

    async def tool():
        heard = Weather()
        return {"heard": heard.cities, "answer": (await agents.Runner.run(agent(heard), QUESTION)).final_output}

    async def streamed_tool():
        heard = Weather()
        result = agents.Runner.run_streamed(agent(heard), QUESTION)
        async for _ in result.stream_events():
            pass
        return {"heard": heard.cities, "answer": result.final_output}

    async def structured():
        return (await agents.Runner.run(agent(output_type=Forecast), QUESTION)).final_output.model_dump()

    return {
        "plain": plain,
        "streamed": streamed,
        "tool": tool,
        "streamed tool": streamed_tool,
        "structured": structured,
    }


tell({"chat": scenes(agents.OpenAIChatCompletionsModel), "responses": scenes(agents.OpenAIResponsesModel)})
