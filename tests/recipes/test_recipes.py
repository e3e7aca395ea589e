"""Recipes of the unmodified cookbook, a few steps each: they run, they learn from what they sampled, they go on."""

import time
from pathlib import Path

import pytest
import tinker
import tinker_cookbook

from loreloop.cli.server import RunningServer
from tests.recipes.conftest import Cookbook, RecipeRun

pytestmark = pytest.mark.slow

NEWEST = Path(__file__).parents[2] / ".cache" / "newest" / "cookbook"
CHATS = Path(tinker_cookbook.__file__).parent / "example_data" / "conversations.jsonl"
SUMS = (
    "env=arithmetic",
    "renderer_name=qwen3_instruct",  # the model's own chat format, in which some answers end in time and others don't
    "lora_rank=8",
    "learning_rate=1e-4",
    "group_size=4",
    "groups_per_batch=3",
    "max_tokens=8",
    "max_steps=3",
    "eval_every=0",
    "save_every=2",
)
CHAT = (
    f"dataset={CHATS}",
    "lora_rank=8",
    "learning_rate=3e-4",
    "lr_schedule=constant",
    "batch_size=2",
    "max_length=64",
    "max_steps=8",
    "eval_every=0",
    "save_every=0",
    "rolling_save_every=3",
)


def steps(recipe: RecipeRun) -> list[int]:
    return [row["step"] for row in recipe.metrics()]


def listed(server: RunningServer) -> dict[str, tinker.types.Checkpoint]:
    """All checkpoints of the server's key, by path."""
    rest = tinker.RestClient(base_url=server.url, api_key=server.key)
    return {checkpoint.tinker_path: checkpoint for checkpoint in rest.list_user_checkpoints().result().checkpoints}


def assert_learned_from_samples(recipe: RecipeRun) -> None:
    rows = [row for row in recipe.metrics() if "progress/batch" in row]
    assert [row["progress/batch"] for row in rows] == [0, 1, 2]
    assert max(row["unclipped_grad_l2:mean"] for row in rows) > 0
    assert max(row["update_l2:mean"] for row in rows) > 0
    assert all(abs(row["optim/kl_sample_train_v1"]) < 0.05 for row in rows)


def assert_saved(recipe: RecipeRun, server: RunningServer, names: list[str]) -> None:
    """State and sampler weights of each name are listed, and only the last is kept for good."""
    on_server, rows = listed(server), recipe.checkpoints()
    assert [row["name"] for row in rows] == names
    for row in rows:
        expiries = [on_server[row[kind]].expires_at for kind in ("state_path", "sampler_path")]
        assert [expiry is None for expiry in expiries] == [row["name"] == "final"] * 2


def test_math_rl(cookbook: Cookbook) -> None:
    recipe = cookbook.recipe("math_rl.train", *SUMS)
    recipe.run()
    assert_learned_from_samples(recipe)
    assert_saved(recipe, cookbook.server, ["000002", "final"])


def test_math_rl_of_the_newest_cookbook(cookbook: Cookbook) -> None:
    """Its default loss is stable_reinforce, on spans of sampled sequences that the server looks up."""
    if not NEWEST.exists():
        pytest.skip("`make test-slow` installs the newest cookbook")
    recipe = cookbook.recipe("math_rl.train", *SUMS, installed_in=NEWEST)
    recipe.run()
    assert '"stable_reinforce"' in (recipe.log / "config.json").read_text()
    assert_learned_from_samples(recipe)
    assert_saved(recipe, cookbook.server, ["000002", "final"])


def test_guess_number(cookbook: Cookbook) -> None:
    small = ("group_size=2", "batch_size=1", "max_tokens=6", "max_steps=2", "eval_every=0", "save_every=1")
    recipe = cookbook.recipe("multiplayer_rl.guess_number.train", "renderer_name=role_colon", *small)
    recipe.run()
    assert steps(recipe) == [0, 1]
    assert all(row["env/all/turns_per_episode"] > 1 for row in recipe.metrics())
    assert_saved(recipe, cookbook.server, ["000001", "000002", "final"])


def test_chat_sl_resumes_from_a_rolling_checkpoint(cookbook: Cookbook) -> None:
    recipe = cookbook.recipe("chat_sl.train", *CHAT)
    kill_after(recipe, n_steps=5)
    before, (rolling,) = recipe.metrics(), recipe.checkpoints()
    assert rolling["batch"] == 3
    recipe.run()
    after = recipe.metrics()[len(before) :]
    assert [row["step"] for row in after] == [3, 4, 5, 6, 7]
    # The recipe saves while a batch is under way, so the state that came back has learned from step 3 before.
    assert after[0]["train_mean_nll"] < before[3]["train_mean_nll"]
    assert [row["name"] for row in recipe.checkpoints()] == ["000003", "000003", "000006", "final"]
    assert_rolled(recipe, cookbook.server)


def kill_after(recipe: RecipeRun, n_steps: int, timeout_seconds: float = 600) -> None:
    process, deadline = recipe.start(), time.monotonic() + timeout_seconds
    try:
        while len(recipe.metrics()) < n_steps:
            assert process.poll() is None, "the recipe ended on its own"
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def assert_rolled(recipe: RecipeRun, server: RunningServer) -> None:
    """The killed run's checkpoint waits for its end; of the resumed run's only the final ones remain."""
    on_server, rows = listed(server), recipe.checkpoints()
    killed, final = rows[0], rows[-1]
    assert on_server[killed["state_path"]].expires_at is not None
    run = final["state_path"].removesuffix("weights/final")
    assert {path for path in on_server if path.startswith(run)} == {final["state_path"], final["sampler_path"]}
    assert on_server[final["state_path"]].expires_at is None
