"""A stand-in for the server's feeds: turns and statements out of memory, everything else from a real server."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx
import msgspec

from loreloop.learn.loop.door import Door
from loreloop.protocol.episodes import Person, Turn, TurnPage
from loreloop.protocol.feedback import Feedback, FeedbackPage


@dataclass
class Feeds:
    turns: list[Turn] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    deleted: list[Person] = field(default_factory=list)
    used: list[dict] = field(default_factory=list)
    persons: dict[str, str] = field(default_factory=dict)

    def turn(self, asked: str, answer: str, **more) -> Turn:
        number = len(self.turns) + 1
        usual = {
            "number": number,
            "id": f"chatcmpl-{number}",
            "episode_id": f"ep-{number}",
            "deployment": "assistant",
            "person": Person("key", "ann"),
            "created": float(number),
            "messages": ({"role": "user", "content": asked},),
            "answer": {"role": "assistant", "content": answer},
            "base_model": "tiny",
            "version": 1,
        }
        self.turns.append(Turn(**(usual | more)))
        return self.turns[-1]

    def say(self, target: str, metric: str, value, **more) -> Feedback:
        number = len(self.feedback) + 1
        usual = {
            "number": number,
            "id": f"fb-{number}",
            "metric": metric,
            "level": "inference",
            "target_id": target,
            "deployment": "assistant",
            "value": value,
            "created": float(number),
        }
        self.feedback.append(Feedback(**(usual | more)))
        return self.feedback[-1]

    def door(self, url: str, key: str) -> Door:
        """A door whose feeds are these, and whose deployments are the real server's."""
        behind = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120)

        def handle(request: httpx.Request) -> httpx.Response:
            found = self.answer(request)
            if found is None:
                sent = behind.request(
                    request.method, request.url.raw_path.decode(), content=request.content, headers=_plain(request)
                )
                return httpx.Response(sent.status_code, content=sent.content)
            return httpx.Response(200, content=msgspec.json.encode(found))

        return Door(httpx.Client(base_url=url, transport=httpx.MockTransport(handle)), "assistant")

    def answer(self, request: httpx.Request) -> object:
        path, after = request.url.path, int(request.url.params.get("after", 0))
        what = path.removeprefix("/loop/v1/deployments/assistant/")
        if what == "turns":
            rows = tuple(one for one in self.turns if one.number > after)[:3]
            return TurnPage(rows, rows[-1].number if rows else after)
        if what == "feedback":
            rows = tuple(one for one in self.feedback if one.number > after)[:3]
            return FeedbackPage(rows, rows[-1].number if rows else after)
        if what == "used":
            self.used.append(msgspec.json.decode(request.content))
            return {}
        if what == "deleted-persons":
            return {"persons": [msgspec.to_builtins(one) for one in self.deleted]}
        return None


def _plain(request: httpx.Request) -> dict[str, str]:
    return {"content-type": "application/json"} if request.content else {}
