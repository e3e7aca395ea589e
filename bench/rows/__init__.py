"""The rows by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from bench.rig import Figure
from bench.rows import (
    images,
    learn,
    moe,
    numbers,
    quantized,
    rl,
    sample,
    scaling,
    serve,
    streams,
    tenants,
    tiers,
    together,
    train,
)

ROWS: dict[str, Callable[[], list[Figure]]] = {
    "control": serve.control,
    "control-synced": serve.control_synced,
    "in-flight": serve.in_flight,
    "handover": serve.handover,
    "mismatch": numbers.mismatch,
    "train": train.train,
    "train-groups": train.train_groups,
    "train-episodes": train.train_episodes,
    "train-long": train.train_long,
    "decode": sample.decode,
    "decode-32": sample.decode_32,
    "decode-int4": quantized.decode_int4,
    "sample-groups": sample.sample_groups,
    "moe-train": moe.moe_train,
    "moe-decode": moe.moe_decode,
    "image-groups": images.image_groups,
    "tenants-train": tenants.tenants_train,
    "tenants-sample": sample.tenants_sample,
    "together": together.train_while_sampling,
    "rl-step": rl.rl_step,
    "supervised": learn.supervised,
    "streams": streams.streams,
    "tiers": tiers.tiers,
    "scaling": scaling.scaling,
}
