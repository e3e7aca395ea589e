"""What graders need of the server besides models: a sandbox for code, and sentence embeddings where they are installed.

Knows no route.
"""

from __future__ import annotations

from collections.abc import Sequence

from loreloop.learn.rewards.graders.grader import Embed
from loreloop.learn.rewards.sandbox import CodeSandbox, Limits, Wanted
from loreloop.memory.evaluation import minilm


class Grading:
    """Both start when they are first used. `code_seconds` is what one call of code may take."""

    def __init__(self, wanted: Wanted = "auto", code_seconds: int = 10) -> None:
        self.limits = Limits(seconds=code_seconds, cpu_seconds=code_seconds)
        self.sandbox = CodeSandbox(wanted)
        self.folder = minilm.folder()
        self.model: minilm.MiniLm | None = None

    @property
    def embed(self) -> Embed | None:
        """Sentence embeddings; None where the package with their weights is not installed."""
        return self._embedded if self.folder is not None else None

    def _embedded(self, texts: Sequence[str]) -> list[list[float]]:
        # Two threads may load the weights at once, which costs time and changes nothing.
        assert self.folder is not None
        model = self.model = self.model or minilm.MiniLm(self.folder)
        return [[float(number) for number in row] for row in model(texts)]

    async def close(self) -> None:
        """Ends the sandbox's processes."""
        await self.sandbox.close()
