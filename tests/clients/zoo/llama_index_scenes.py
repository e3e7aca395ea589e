"""LlamaIndex's model for servers that speak OpenAI's API."""

import asyncio

import pydantic
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from scenes import GREETING, KEY, MODEL, OPENAI, QUESTION, Weather, tell


class Forecast(pydantic.BaseModel):
    city: str
    days: int


PLAIN = {"is_chat_model": False, "max_tokens": 100}


def llm(**fields):
    usual = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8192, "max_retries": 0}
    return OpenAILike(model=MODEL, api_base=OPENAI, api_key=KEY, **usual | fields)


def asked(text):
    return [ChatMessage(role="user", content=text)]


def tool_round_trip(streaming):
    heard = Weather()

    def weather(city: str) -> str:
        """The weather of a city."""
        return heard.ask(city)

    async def scene():
        agent = FunctionAgent(tools=[weather], llm=llm(), streaming=streaming)
        return {"heard": heard.cities, "answer": str(await agent.run(QUESTION))}

    return asyncio.run(scene())


def structured(**fields):
    return llm(**fields).structured_predict(Forecast, PromptTemplate(QUESTION)).model_dump()


tell(
    {
        "chat": {
            "plain": lambda: llm().chat(asked(GREETING)).message.content,
            "streamed": lambda: [part.delta for part in llm().stream_chat(asked(GREETING))],
            "tool": lambda: tool_round_trip(streaming=False),
            "streamed tool": lambda: tool_round_trip(streaming=True),
            "structured": structured,
            "structured by a schema": lambda: structured(should_use_structured_outputs=True),
        },
        "completions": {
            "plain": lambda: llm(**PLAIN).complete(GREETING).text,
            "streamed": lambda: [part.delta for part in llm(**PLAIN).stream_complete(GREETING)],
        },
    }
)
