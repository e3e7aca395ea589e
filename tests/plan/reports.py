"""The runs that docs/plan.md reports, and its tables of them: `python -m tests.plan.reports` prints these."""

from loreloop.formats.configuration import spec_of
from loreloop.model.families.table import family_of
from loreloop.parallel.mesh import Mesh
from loreloop.plan.devices import parse_group
from loreloop.plan.memory import memory_of
from loreloop.plan.rates import FAST, LIKELY, SLOW
from loreloop.plan.report import useful_flops
from loreloop.plan.search import plan_of
from loreloop.plan.wish import Base, Wish
from tests.model.test_count import KIMI, PUBLISHED

LONG = {"max_position_embeddings": 262144}


def base_of(config: dict[str, object], *, packed: bool = False) -> Base:
    return Base("it", spec_of(config, "it"), family_of(config).names, packed)


K2 = base_of(KIMI | LONG, packed=True)
REPORTS = {
    "Kimi K2 Thinking, rank 32": (K2, Wish(), "8xH200"),
    "Kimi K2 Thinking, rank 32, twice the devices": (K2, Wish(), "16xH200"),
    "Kimi K2 Thinking, rank 128": (K2, Wish(rank=128), "64xH800"),
    "Kimi K2 Thinking, rank 128, each expert's own, bf16": (
        K2,
        Wish(rank=128, experts="per_expert", precision="bf16"),
        "64xH800",
    ),
    "Kimi K2 Thinking, full tuning": (K2, Wish(full=True), "256xH200"),
    "Qwen3-VL-235B, rank 32": (base_of(PUBLISHED["Qwen3-VL-235B-A22B"][0]), Wish(), "8xH200"),
    "Qwen3-30B-A3B, rank 32": (base_of(PUBLISHED["Qwen3-30B-A3B"][0]), Wish(), "1xH200"),
}
TENTH = {
    "LoRA, rank 32": Wish(),
    "LoRA, rank 128, each expert's own": Wish(rank=128, experts="per_expert"),
    "the same over bf16": Wish(rank=128, experts="per_expert", precision="bf16"),
    "full tuning": Wish(full=True),
}


def report(name: str) -> list[float | str]:
    """Mesh and engines, gigabytes of the fullest rank, seconds drawing and learning, of the whole step with its band,
    tokens a second, and utilisation in percent."""
    base, wish, gpus = REPORTS[name]
    group = parse_group(gpus)
    best = plan_of(base, wish, group).fitting[0]
    assert best.step
    seconds = [best.step.seconds(rates) for rates in (LIKELY, FAST, SLOW)]
    return [
        gpus,
        f"`{best.mesh}` × {best.n_engines}",
        best.memory.total / 1e9,
        best.step.rollout.seconds(LIKELY),
        best.step.training.seconds(LIKELY),
        *seconds,
        wish.n_samples * wish.response / seconds[0],
        100 * useful_flops(base.spec, wish) / (seconds[0] * group.n * group.device.flops),
    ]


def tenth(name: str) -> list[float]:
    """Gigabytes of a whole model in one place: the base, the trained numbers with their master copies, moments,
    gradient, and all of them."""
    parts = memory_of(K2, TENTH[name], Mesh(), 1.0).parts
    each = [parts.experts + parts.weights, parts.adapter, parts.moments, parts.gradient]
    return [size / 1e9 for size in (*each, sum(each))]


if __name__ == "__main__":
    for title in REPORTS:
        cells = report(title)
        print("|", title, "|", " | ".join(c if isinstance(c, str) else f"{c:.1f}" for c in cells), "|")
    for title in TENTH:
        print("|", title, "|", " | ".join(f"{c:.0f}" for c in tenth(title)), "|")
