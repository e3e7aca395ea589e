"""What the bench of times records is read as the planner's parts, so that constants behind it are found again."""

from typing import Any

import pytest

from bench.plan_fit import KINDS, figures_of, observations_of, rates_of
from bench.plan_known import of_others, of_scaling
from loreloop.plan.fitting import fit
from loreloop.plan.rates import Rates
from tests.model.test_count import COMMON

TRUE = {
    "train": Rates(compute=0.5, memory=0.6, links=0.6, layer_seconds=5e-5, message_seconds=2e-5, overlap=1.0),
    "read": Rates(compute=0.4, memory=0.6, links=0.6, layer_seconds=3e-5, message_seconds=2e-5, overlap=0.5),
    "draw": Rates(compute=0.2, memory=0.7, links=0.6, layer_seconds=1e-4, message_seconds=2e-5, overlap=0.0),
}


def config(width: int, n_layers: int, n_heads: int) -> dict[str, Any]:
    heads = {"num_attention_heads": n_heads, "num_key_value_heads": n_heads // 2, "head_dim": width // n_heads}
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": n_layers, "vocab_size": 4096}
    return COMMON | heads | sizes | {"model_type": "llama", "tie_word_embeddings": True}


def recorded(*threads: int) -> dict[str, Any]:
    """A record of a processor that keeps to the planner's model."""
    record: dict[str, Any] = {
        "shapes": {"a": config(256, 4, 4), "b": config(512, 8, 8), "c": config(1024, 2, 8)},
        "limits": {str(n): {"flops": 1e11 * n, "memory_rate": 2e10} for n in threads},
        "settings": {"rank": 8, "new_tokens": 16},
        "observations": [
            {"shape": shape, "threads": n, "kind": kind, "n": rows, "tokens": tokens, "batch_rows": 512, "seconds": 1.0}
            for shape in "abc"
            for n in threads
            for kind in KINDS
            for rows in (1, 4, 16)
            for tokens in (64, 256)
        ],
    }
    for n in threads:
        of_threads = [one for one in record["observations"] if one["threads"] == n]
        for one, seen in zip(of_threads, observations_of(record, n), strict=True):
            one["seconds"] = seen.part.seconds(TRUE[one["kind"]])
    return record


def test_the_constants_behind_a_record_are_found_again() -> None:
    found = rates_of(recorded(2), 2)
    for kind, true in TRUE.items():
        assert found[kind].compute == pytest.approx(true.compute, rel=1e-4), kind
        assert found[kind].layer_seconds == pytest.approx(true.layer_seconds, rel=1e-3), kind
    # Training is bound by products throughout, and nothing comes out of its memory; tokens are bound by both.
    assert (found["train"].overlap, found["draw"].overlap) == (1.0, 0.0)


def test_errors_are_told_for_each_number_of_threads_and_kind() -> None:
    record = recorded(1, 2)
    figures = {figure.name: figure for figure in figures_of(record)}
    assert figures["1 thread: median error, half held back"].met
    assert figures["2 threads, draw: median error, half held back"].value == pytest.approx(0, abs=1e-3)
    # Drawing that takes now this and now that is found out.
    draws = [one for one in record["observations"] if one["threads"] == 1 and one["kind"] == "draw"]
    for number, one in enumerate(draws):
        one["seconds"] = 0.001 * 3.0 ** (number % 4)
    figures = {figure.name: figure for figure in figures_of(record)}
    assert (figures["1 thread, draw: median error, half held back"].value or 0) > 20
    assert figures["1 thread, train: median error, half held back"].value == pytest.approx(0, abs=1e-3)


def test_a_pass_of_training_grows_with_its_rows_and_a_token_with_what_is_cached() -> None:
    seen = {one.name: one.part for one in observations_of(recorded(1), 1)}
    assert seen["b: train 4 x 0256"].products > 3.9 * seen["b: train 1 x 0256"].products
    assert seen["b: draw 16 x 0256"].memory > seen["b: draw 16 x 0064"].memory
    assert seen["b: draw 16 x 0064"].products == pytest.approx(16 * seen["b: draw 1 x 0064"].products)


def test_what_is_known_of_the_default_model_is_read_with_its_sizes() -> None:
    seen = {one.name: one for one in of_scaling()}
    assert len(seen) == 25
    # Twice the rows are twice the products, and a longer context is more to read.
    assert seen["training over batch: 0016"].part.products == pytest.approx(
        2 * seen["training over batch: 0008"].part.products, rel=1e-3
    )
    assert (
        seen["decoding over context, 8 rows: 1024"].part.memory
        > seen["decoding over context, 8 rows: 0064"].part.memory
    )
    # 134.5 million numbers are read for a token, in two bytes each.
    assert 0.26 < seen["decoding over rows: 0001"].part.memory < 0.29
    assert {one.kind for one in of_others()} == {"train", "draw"}


def test_the_model_of_times_holds_for_the_default_model() -> None:
    assert fit(list(of_scaling())).median_held < 0.10
