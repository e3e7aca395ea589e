"""An image in a remembered conversation: the model sees it when it comes, and afterwards it is a marker."""

import httpx
import openai

from loreloop.cli.server import RunningServer
from tests.vision.test_vision_chat import N_CAT, said, seen, url


def test_an_image_is_seen_once_and_a_marker_afterwards(seeing: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{seeing.url}/v1", api_key=seeing.key, max_retries=0)

    def prompt_tokens(memory: str, *content: dict) -> int:
        answer = client.chat.completions.create(
            model="eyes",
            messages=[{"role": "user", "content": list(content)}],  # type: ignore[list-item]
            max_tokens=2,
            seed=1,
            extra_body={"memory": {"id": memory, "budget_tokens": 200}},
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert prompt_tokens("cat", said("look"), seen(url())) == prompt_tokens("none", said("look")) + N_CAT + 2
    shown = httpx.get(f"{seeing.url}/loop/v1/memories/cat", headers={"x-api-key": seeing.key}).json()
    assert shown["segments"][0]["text"] == "user: look\n[image]"
    again = prompt_tokens("cat", said("again"))
    assert again > shown["tokens"] + 1
    marker = {"id": "cat", "budget_tokens": 200}
    answer = httpx.post(
        f"{seeing.url}/anthropic/api/v1/messages/count_tokens",
        headers={"x-api-key": seeing.key},
        json={"model": "blind", "messages": [{"role": "user", "content": "x"}], "memory": marker},
    )
    assert answer.status_code == 200, "no image goes to a model that sees none"
