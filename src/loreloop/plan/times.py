"""How long the parts of a step take on a layout: a roofline of products, memory and links, after Williams et al. 2009.

A part takes as long as the slower of its products and its memory, and what is said comes on top, since the engine does
not compute while it speaks. Each part names what bounds it.

Legend: S stages, M micro-batches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

from loreloop.model.spec import DecoderSpec
from loreloop.parallel.mesh import Axis, Mesh
from loreloop.parallel.mesh_traffic import Traffic, sampling_traffic, sent, step_traffic, training_traffic
from loreloop.parallel.pipeline_cut import head_cost, layer_cost
from loreloop.parallel.shares import share_of
from loreloop.parallel.traffic import Work
from loreloop.plan.devices import Device
from loreloop.plan.memory import Memory
from loreloop.plan.rates import Rates
from loreloop.plan.wish import Wish

STATE_BYTES = 28  # a trained number's in an optimizer's step: master, moments and gradient, read and most written
MESSAGES = 2  # a layer and direction, along each axis that speaks there


@dataclass(frozen=True)
class Part:
    """Seconds at the published rates, by what takes them, and how many layers and messages are begun; products and
    memory go on at once."""

    products: float = 0.0
    memory: float = 0.0
    links: float = 0.0
    layers: float = 0.0
    messages: float = 0.0

    def by_cause(self, rates: Rates) -> dict[str, float]:
        """Seconds of each cause."""
        return {
            "products": self.products / rates.compute,
            "memory": self.memory / rates.memory,
            "links": self.links / rates.links,
            "starts": self.layers * rates.layer_seconds + self.messages * rates.message_seconds,
        }

    def seconds(self, rates: Rates) -> float:
        """Of the whole part."""
        causes = self.by_cause(rates)
        shorter, longer = sorted((causes["products"], causes["memory"]))
        return longer + (1 - rates.overlap) * shorter + causes["links"] + causes["starts"]

    def bound(self, rates: Rates) -> str:
        """What takes most of it."""
        causes = self.by_cause(rates)
        return max(causes, key=lambda name: causes[name])

    def times(self, n: float) -> Part:
        """So many of them, one after another."""
        return Part(**{name: each * n for name, each in vars(self).items()})

    def plus(self, other: Part) -> Part:
        """Both, one after the other."""
        return Part(**{name: each + vars(other)[name] for name, each in vars(self).items()})


@dataclass(frozen=True)
class Machine:
    """A model on a layout of devices, as one rank of it has it. `running` answers have room at once on all ranks."""

    spec: DecoderSpec
    mesh: Mesh
    device: Device
    memory: Memory
    running: int

    @cached_property
    def local(self) -> DecoderSpec:
        """What the rank holds."""
        return share_of(self.spec, self.mesh, self.memory.rank).local

    def training(self, wish: Wish) -> Part:
        """A pass over all rows of a step, and the optimizer's step."""
        mesh, rows = self.mesh, min(wish.rows, wish.trained_rows)
        n_batches = -(-wish.trained_rows // rows)
        # There, there again unless activations are kept, and back by the inputs; all tuned, by the weights as well.
        ways = (4 if wish.full else 3) - wish.kept
        work = Work(rows, rows, recomputed=not wish.kept)
        said = training_traffic(self.spec, mesh, self.memory.rank, work)
        flops = self._flops(rows, seen_in_training(wish), ways, kept=wish.kept) + 2 * ways * rows * self._head()
        flops += 0 if wish.full else 6 * rows * self._adapter()
        n_reads = 3 - wish.kept
        batch = self._part(flops, n_reads * self._weights(), said, n_reads)
        # A pipeline fills and empties (Narayanan et al. 2021, 2104.04473).
        passes = n_batches + mesh.pp - 1
        n_numbers = self.memory.parts.gradient / 4
        step = Part(memory=n_numbers * STATE_BYTES / self.device.memory_rate)
        if not wish.full:
            step = step.plus(Part(links=self._links(step_traffic(self.spec, mesh, self.memory.rank, wish.lora))))
        return batch.times(passes).plus(step)

    def rollout(self, wish: Wish, n_samples: int) -> Part:
        """So many answers drawn by this one engine, their prompts read once a group."""
        running = min(n_samples, self.running)
        drawn = self.token(wish, running).times(wish.response * n_samples / running)
        return drawn.plus(self.reading(wish, -(-n_samples // wish.group) * wish.prompt))

    def token(self, wish: Wish, running: int) -> Part:
        """One token of each of so many answers that are drawn at once, in their middle."""
        mesh = self.mesh
        # What is under way is dealt out to the stages, which work on it by turns.
        rows = -(-running // mesh.pp)
        said = sampling_traffic(self.spec, mesh, self.memory.rank, Work(rows, rows))
        seen = wish.prompt + wish.response / 2
        cache = rows * seen / wish.context * self.memory.parts.cache
        flops = self._flops(rows, seen, None) + 2 * rows * self._head()
        # All stages of a token, or all parts of the answers on one stage: as many turns.
        return self._part(flops, self._weights(rows) + cache, said, 1).times(mesh.pp)

    def reading(self, wish: Wish, n_tokens: int) -> Part:
        """So many tokens of prompts, by chunks of a micro-batch's rows."""
        mesh, chunk = self.mesh, min(wish.rows, n_tokens)
        said = sampling_traffic(self.spec, mesh, self.memory.rank, Work(chunk, 0))
        read = self._part(self._flops(chunk, wish.prompt / 2, 1), self._weights(chunk), said, 1)
        return read.times(n_tokens / chunk + mesh.pp - 1)

    def _part(self, flops: float, n_bytes: float, said: Traffic, ways: int) -> Part:
        n_layers, n_speaking = ways * len(self.local.layers), (self.mesh.tp > 1) + (self.mesh.ep > 1)
        return Part(
            products=flops / self.device.flops,
            memory=n_bytes / self.device.memory_rate,
            links=self._links(said),
            layers=n_layers,
            messages=MESSAGES * n_speaking * n_layers,
        )

    def _flops(self, rows: int, seen: float, ways: int | None, *, kept: bool = False) -> float:
        """Operations of a rank's layers, where each row sees so many tokens; a cut layer's is its share. `ways` is None
        where tokens are drawn: keys and values are then read as they lie in the cache."""
        spec, mesh, layers = self.spec, self.mesh, self.local.layers
        widths = spec.d_q + spec.d_attended
        if ways is None and spec.latent is not None:
            # Every head multiplies whole latents (DeepSeek-V2, 2405.04434, appendix C), and not its own keys.
            widths = 2 * spec.n_heads * spec.cache.size
        # There and (unless it is kept) there again, and back two products each for scores and values; none of them has
        # weights.
        attended = 2 * widths * seen * (4 - kept if ways and ways > 1 else 1)
        routed, plain = _costs(spec)
        mine = sum(plain[layer] + routed[layer] / mesh.ep for layer in layers)
        return rows * ((ways or 1) * 2 * mine + len(layers) * attended) / mesh.tp

    def _head(self) -> float:
        return head_cost(self.spec) / self.mesh.tp if self.local.has_head else 0

    def _adapter(self) -> float:
        """Numbers of the adapter that a row meets, where all of it were experts' own: of those, the ones that it is
        routed to. Attention's part is met by every row, and is too small beside the base's products to count."""
        moe = self.spec.moe
        return self.memory.parts.gradient / 4 * (moe.top_k / moe.n_experts if moe else 1)

    def _weights(self, rows: int | None = None) -> float:
        """Bytes of weights that a batch reads: of experts those that some row is routed to."""
        moe, parts = self.spec.moe, self.memory.parts
        touched = 1 - (1 - moe.top_k / moe.n_experts) ** rows if moe and rows is not None else 1.0
        return parts.weights + touched * parts.experts

    def _links(self, said: Traffic) -> float:
        """Seconds that it takes to say all that. An axis whose ranks fit a node stays inside; the inmost is `tp`."""
        found, span = 0.0, 1
        order: tuple[Axis, ...] = ("tp", "ep", "pp")
        by_axis = sent(said, self.mesh)
        for axis in order:
            span *= self.mesh.sizes[axis]
            rate = self.device.inner_rate if span <= self.device.per_node else self.device.outer_rate
            found += by_axis[axis] / rate
        return found


def seen_in_training(wish: Wish) -> float:
    """Tokens that a row of a pass sees in the mean: those of a prompt are computed once for its group, and each row of
    an answer sees the whole prompt."""
    prompt, response = wish.prompt, wish.group * wish.response
    return (prompt * prompt / 2 + response * (prompt + wish.response / 2)) / (prompt + response)


@functools.lru_cache(maxsize=4)
def _costs(spec: DecoderSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Multiplications of a row in each layer: in what experts' ranks share, and in all else."""
    moe = spec.moe
    of_experts = 3 * spec.d_model * (moe.top_k * moe.d_expert + moe.d_shared) if moe else 0
    routed = tuple(of_experts if spec.routes(layer) else 0 for layer in range(spec.n_layers))
    return routed, tuple(layer_cost(spec, layer) - routed[layer] for layer in range(spec.n_layers))
