"""`loreloop models check`: what is served is said with its size, what is not with the words of `models add`."""

import json

import pytest
from click.testing import CliRunner

from loreloop.cli.main import cli
from loreloop.formats.adding import add
from loreloop.formats.catalog import Catalog
from loreloop.formats.verdict import check
from loreloop.protocol.errors import BadRequest
from tests.formats.test_mxfp4 import packed_folder
from tests.tiny import make_tiny_model

UNSERVED = {
    "qwen3_next": ({"model_type": "qwen3_next", "linear_conv_kernel_dim": 4}, "qwen3_moe", "gated delta layers"),
    "by its settings": ({"model_type": "strange", "kv_lora_rank": 8}, "deepseek_v3", ""),
    "mamba": ({"model_type": "falcon_h9", "mamba_d_state": 8, "hidden_size": 8}, "llama", "state-space layers"),
    "kinds": ({"model_type": "new", "layer_types": ["full_attention", "chunked"]}, "llama", "kind 'chunked'"),
    "no type": ({"hidden_size": 8}, "llama", ""),
}


def run(*arguments):
    return CliRunner().invoke(cli, ["models", "check", *map(str, arguments)])


def config_file(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("config", "nearest", "missing"), UNSERVED.values(), ids=UNSERVED)
def test_what_is_not_served_is_said_as_models_add_says_it(tmp_path, config, nearest, missing):
    folder = config_file(tmp_path / "model", config)
    verdict, done = check(str(folder)), run(folder, "--json")
    assert (verdict.nearest, done.exit_code) == (nearest, 1)
    assert missing in ", ".join(verdict.missing)
    assert f"nearest that is served is {nearest!r}" in verdict.reason
    assert verdict.reason in done.stderr
    with pytest.raises(BadRequest) as refused:
        add(Catalog(tmp_path / "data"), str(folder))
    assert verdict.reason.replace("The config.json of ", "") in refused.value.message


def test_code_of_its_own_is_named_and_never_run(tmp_path):
    folder = config_file(tmp_path / "model", {"model_type": "mine", "auto_map": {"AutoModel": "code.Model"}})
    (folder / "code.py").write_text("raise SystemExit('was run')")
    assert "asks for code of its own, which is never run" in check(str(folder)).reason


def test_a_served_model_is_said_with_its_sizes(tmp_path):
    """The tiny model's weights on disk are fp32, twice as large as they are served."""
    folder = make_tiny_model(tmp_path / "model", "gemma2", tie_word_embeddings=False)
    (row,) = json.loads(run(folder, "--json").stdout)
    assert (row["served"], row["type"], row["fits_here"]) == ("yes", "gemma2", "bf16 and int4")
    verdict = check(str(folder / "config.json"))
    size = (folder / "model.safetensors").stat().st_size
    assert verdict.n_bf16 == pytest.approx(size / 2, rel=0.02)
    assert verdict.n_packed < 0.5 * verdict.n_bf16
    assert verdict.n_cache == 1000 * 2 * 2 * 2 * 32 * 2  # layers, keys and values, heads, width, bytes


def test_experts_that_come_packed_are_counted_so(tmp_path):
    packed, dense = packed_folder(tmp_path)
    assert check(str(packed)).n_bf16 < check(str(dense)).n_bf16


def test_a_setting_that_is_not_served_is_the_reason(tmp_path):
    folder = make_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert "'awq'" in check(str(folder)).reason


def test_without_a_configuration_there_is_nothing_to_say(tmp_path):
    done = run(tmp_path / "nothing")
    assert done.exit_code != 0
    with pytest.raises(BadRequest, match="neither a model folder"):
        check("nothing")
