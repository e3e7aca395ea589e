"""The command `llm`, with a model of its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scenes import GREETING, HEARD, KEY, MODEL, OPENAI, QUESTION, tell

MODELS = [
    {
        "model_id": "loreloop",
        "model_name": MODEL,
        "api_base": OPENAI,
        "api_key_name": "loreloop",
        "supports_schema": True,
        "supports_tools": True,
    }
]
FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "extra-openai-models.yaml").write_text(json.dumps(MODELS))  # JSON is YAML
(FOLDER / "keys.json").write_text(json.dumps({"loreloop": KEY}))


def llm(*arguments):
    environment = os.environ | {"LLM_USER_PATH": str(FOLDER)}
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def tool_round_trip(*arguments):
    noted = FOLDER / "noted"
    noted.unlink(missing_ok=True)
    function = f"""
def weather(city: str) -> str:
    "The weather of a city."
    print(city, file=open({str(noted)!r}, "a"))
    return {HEARD!r}
"""
    answer = llm("-m", "loreloop", "--functions", function, *arguments, QUESTION)
    return {"heard": noted.read_text().split(), "answer": answer}


def second_turn():
    llm("-m", "loreloop", GREETING)
    return llm("--continue", GREETING)


tell(
    {
        "chat": {
            "plain": lambda: llm("-m", "loreloop", "--no-stream", GREETING),
            "streamed at the end": lambda: llm("-m", "loreloop", GREETING),
            "second turn": second_turn,
            "tool": lambda: tool_round_trip("--no-stream"),
            "streamed tool": tool_round_trip,
            "structured": lambda: json.loads(llm("-m", "loreloop", "--schema", "city, days int", QUESTION)),
        }
    }
)
