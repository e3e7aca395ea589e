"""DSPy, which asks for fields in a text of its own form or in JSON, through litellm."""

import dspy
from scenes import ANTHROPIC, GREETING, KEY, MODEL, OPENAI, QUESTION, tell


def lm(way):
    base = {"openai": OPENAI, "anthropic": f"{ANTHROPIC}/v1"}[way]
    return dspy.LM(f"{way}/{MODEL}", api_base=base, api_key=KEY, cache=False, num_retries=0, max_tokens=500)


class Forecast(dspy.Signature):
    """The weather."""

    question: str = dspy.InputField()
    city: str = dspy.OutputField()
    days: int = dspy.OutputField()


def scenes(way):
    def plain():
        with dspy.context(lm=lm(way)):
            return dspy.Predict("question -> answer")(question=GREETING).answer

    def structured():
        with dspy.context(lm=lm(way), adapter=dspy.JSONAdapter()):
            found = dspy.Predict(Forecast)(question=QUESTION)
            return {"city": found.city, "days": found.days}

    async def streamed():
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        ask = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])
        with dspy.context(lm=lm(way)):
            parts = [part async for part in ask(question=GREETING)]
        chunks = [part.chunk for part in parts if isinstance(part, dspy.streaming.StreamResponse)]
        # Where a field ends is seen ten chunks back at most, and these are letters: the mark's beginning comes through.
        return chunks[: chunks.index("\n\n[")]

    return {"plain": plain, "streamed": streamed, "structured": structured}


tell({way: scenes(way) for way in ("openai", "anthropic")})
