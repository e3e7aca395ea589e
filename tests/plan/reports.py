"""The runs that docs/plan.md reports, and its tables of them: `python -m tests.plan.reports` prints these."""

import functools

from loreloop.formats.configuration import spec_of
from loreloop.model.families.table import family_of
from loreloop.parallel.mesh import Mesh, parse_mesh
from loreloop.plan.devices import parse_group
from loreloop.plan.lengths import drawn, of_mean
from loreloop.plan.memory import memory_of
from loreloop.plan.rates import FAST, LIKELY, SLOW
from loreloop.plan.report import useful_flops
from loreloop.plan.scaling import Habits, Point, curve, verdict
from loreloop.plan.search import plan_of
from loreloop.plan.wish import Base, Wish
from tests.model.test_count import COMMON, DEEPSEEK, KIMI, PUBLISHED

LONG = {"max_position_embeddings": 262144}
# As their makers publish them. GLM-5's sparse attention is counted as a dense one.
GLM_5 = DEEPSEEK | {
    "vocab_size": 154880,
    "hidden_size": 6144,
    "intermediate_size": 12288,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
}
QWEN_72B = COMMON | {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def base_of(config: dict[str, object], *, packed: bool = False) -> Base:
    return Base("it", spec_of(config, "it"), family_of(config).names, packed)


K2 = base_of(KIMI | LONG, packed=True)
QWEN_30B = base_of(PUBLISHED["Qwen3-30B-A3B"][0])
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
    "Qwen3-30B-A3B, rank 32": (QWEN_30B, Wish(), "1xH200"),
}
TENTH = {
    "LoRA, rank 32": Wish(),
    "LoRA, rank 128, each expert's own": Wish(rank=128, experts="per_expert"),
    "the same over bf16": Wish(rank=128, experts="per_expert", precision="bf16"),
    "full tuning": Wish(full=True),
}
# Runs of others, with what they have published of themselves; the rest of each wish is assumed.
OTHERS = {
    "Kimi K2, rank 128 (Mind Lab)": (K2, Wish(rank=128, experts="per_expert", precision="bf16"), "64xH800"),
    "Kimi-K2.5, rank 32 (miles)": (K2, Wish(context=18_432, response=16_384), "128xH200"),
    "Kimi K2, full tuning (miles)": (K2, Wish(full=True, batch=128), "256xH200"),
    "Kimi K2, pretraining (Megatron-Bridge)": (K2, Wish(full=True), "512xH100"),
    "Qwen3-30B-A3B, rank 32 (verl)": (QWEN_30B, Wish(context=2048, response=1024, batch=128, group=4), "8xH100"),
    "Qwen2.5-72B, rank 32 (verl)": (base_of(QWEN_72B), Wish(), "8xH100"),
    "GLM-5.1, full tuning (prime-rl)": (
        base_of(GLM_5 | LONG),
        Wish(full=True, context=9_216, response=7_168),
        "224xH200",
    ),
}
LOOP = (K2, Wish(batch=64), "1024xH200")


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


def other(name: str) -> list[float | str]:
    """Devices, mesh and engines, gigabytes of the fullest rank, seconds drawing and learning, and of the whole step
    with its band."""
    base, wish, gpus = OTHERS[name]
    best = plan_of(base, wish, parse_group(gpus)).fitting[0]
    assert best.step
    return [
        gpus,
        f"`{best.mesh}` × {best.n_engines}",
        best.memory.total / 1e9,
        best.step.rollout.seconds(LIKELY),
        best.step.training.seconds(LIKELY),
        *(best.step.seconds(rates) for rates in (LIKELY, FAST, SLOW)),
    ]


def tenth(name: str) -> list[float]:
    """Gigabytes of a whole model in one place: the base, the trained numbers with their master copies, moments,
    gradient, and all of them."""
    parts = memory_of(K2, TENTH[name], Mesh(), 1.0).parts
    each = [parts.experts + parts.weights, parts.adapter, parts.moments, parts.gradient]
    return [size / 1e9 for size in (*each, sum(each))]


@functools.cache
def loop() -> list[Point]:
    """The simulated loop of the page: answers of 2,048 tokens in the mean, cut where the command cuts them."""
    base, wish, gpus = LOOP
    return curve(base, wish, parse_group(gpus), Habits(_lengths()))


def _lengths() -> list[int]:
    base, wish, _ = LOOP
    return drawn(of_mean(wish.response), 1 << 15, 0, base.spec.context_window - wish.prompt)


# Which groups a step waits for, with the staleness: each on the devices of `ORDERS_ON`.
ORDERS = {"its own": (1, False), "its own, two steps early": (2, False), "its own, four steps early": (4, False)}
ORDERS |= {"whichever ended first, one step early": (2, True), "whichever ended first, two steps early": (4, True)}
ORDERS_ON = "256xH200"


@functools.cache
def order(name: str) -> list[float | str]:
    """Staleness, tokens a second, seconds a step, idle shares in percent, and staleness in the mean and at most."""
    base, wish, _ = LOOP
    staleness, overtaking = ORDERS[name]
    group, lengths = parse_group(ORDERS_ON), _lengths()
    points = curve(base, wish, group, Habits(lengths, (staleness,), overtaking=overtaking), parse_mesh("pp=4,sp=8"))
    outcome = points[-1].outcome
    return [*loop_row(points[-1])[1:2], *loop_row(points[-1])[3:], str(outcome.staleness_most)]


def loop_row(point: Point) -> list[float | str]:
    """Devices, staleness, mesh and engines, tokens a second, seconds a step, idle shares in percent, mean staleness."""
    outcome = point.outcome
    return [
        str(point.n),
        str(point.staleness),
        f"`{point.mesh}` × {point.n_engines}",
        outcome.tokens_a_second,
        outcome.step_seconds,
        100 * abs(outcome.trainer_idle),  # rounding leaves a little below nothing
        100 * abs(outcome.sampler_idle),
        outcome.staleness_mean,
    ]


def cells(found: list[float | str], form: str) -> str:
    return " | ".join(each if isinstance(each, str) else format(each, form) for each in found)


if __name__ == "__main__":
    for title in REPORTS:
        print("|", title, "|", cells(report(title), ".1f"), "|")
    for title in TENTH:
        print("|", title, "|", cells([*tenth(title)], ".0f"), "|")
    for title in OTHERS:
        print("|", title, "| … |", cells(other(title), ".1f"), "| … |")
    for one in loop():
        print("|", cells(loop_row(one), ".1f"), "|")
    for title in ORDERS:
        print("|", title, "|", cells(order(title), ".1f"), "|")
    print("\n".join(verdict(loop())))
