"""The planner's command: from a configuration alone, in little time, and with what it refuses told."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.test_count import PUBLISHED


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plan") / "config.json"
    file.write_text(json.dumps(PUBLISHED["Qwen3-30B-A3B"][0]))
    return file


def planned(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loreloop.cli", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_plan_names_layouts_memory_times_and_costs(config: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("H200 = 3.0\n")
    done = planned(str(config), "--gpus", "2xH200", "--prices", str(prices), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    best, memory = plan["best"][0], plan["memory"][0]
    assert best["step_s_from"] < best["step_s"] < best["step_s_to"]
    assert best["cost_a_step"] == pytest.approx(3.0 * 2 * best["step_s"] / 3600, rel=0.02)
    assert best["rollout_bound"] in {"products", "memory", "links", "starts"}
    assert memory["total"] == pytest.approx(
        sum(memory[part] for part in ("experts", "weights", "adapter", "moments", "gradient", "cache", "inputs"))
        + sum(memory[part] for part in ("layer", "work", "buffers")),
        abs=0.2,
    )
    assert "full tuning fits" in plan["beside"]


@pytest.mark.timed
def test_a_plan_for_a_host_takes_little_computing(config: Path) -> None:
    """CPU time of the command's own process, imports among it: what an idle core takes in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = planned(str(config), "--gpus", "8xH200", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert 0.2 < used < 5  # less would be none of it


def test_experts_are_packed_only_where_they_are_published_in_4_bits(config: Path, tmp_path: Path) -> None:
    """Blocks of 8 bits become bf16 when they are loaded."""
    plain = json.loads(config.read_text())
    of_8_bits = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    group = {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True, "strategy": "group"}
    of_4_bits = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": group}},
    }
    experts = []
    for number, about in enumerate((None, of_8_bits, of_4_bits)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(plain | ({"quantization_config": about} if about else {})))
        done = planned(str(file), "--gpus", "8xH200", "--json")
        assert done.returncode == 0, done.stderr
        experts.append(max(row["experts"] for row in json.loads(done.stdout)["memory"]))
    assert experts[1] == experts[0] > 3 * experts[2]


def test_a_table_is_for_people(config: Path) -> None:
    done = planned(str(config), "--gpus", "1xH200")
    assert done.returncode == 0
    assert "by part" in done.stdout
    assert "computed and not measured" in done.stdout


def test_a_layout_that_is_asked_for_is_the_only_one(config: Path) -> None:
    done = planned(str(config), "--gpus", "8xH200", "--mesh", "ep=4", "--json")
    assert done.returncode == 0, done.stderr
    assert [(row["mesh"], row["engines"]) for row in json.loads(done.stdout)["best"]] == [("ep=4", 2)]


def test_activations_that_are_kept_save_time_and_take_memory(config: Path) -> None:
    rows = []
    for more in ([], ["--kept"]):
        done = planned(str(config), "--gpus", "8xH200", "--mesh", "tp=4", "--json", *more)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout)["best"][0])
    assert rows[1]["training_s"] < rows[0]["training_s"]
    assert rows[1]["gb_a_rank"] > rows[0]["gb_a_rank"]


def test_the_loop_is_played_on_growing_numbers_of_devices(config: Path, tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("300 400 500\n2500\n")
    prices = tmp_path / "prices.toml"
    prices.write_text("H200 = 3.0\n")
    words = [str(config), "--gpus", "16xH200", "--simulate", "--staleness", "0,2", "--lengths", str(lengths)]
    words += ["--overtaking", "--piece", "100", "--prices", str(prices), "--seed", "3", "--json"]
    first, second = planned(*words), planned(*words)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    assert [(row["gpus"], row["staleness"]) for row in found["rows"]] == [(8, 0), (8, 2), (16, 0), (16, 2)]
    assert all(row["staleness_most"] <= row["staleness"] for row in found["rows"])
    assert all(row["cost_a_million_tokens"] > 0 for row in found["rows"])
    assert found["lengths"]["longest"] == 2500
    assert found["lengths"]["mean"] == pytest.approx(925, rel=0.05)
    assert len(found["verdict"]) == 3


@pytest.mark.timed
def test_the_loop_is_played_in_little_time(config: Path) -> None:
    """As of a plan: CPU time of the whole command, up to 1,024 devices."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = planned(str(config), "--gpus", "1024xH200", "--simulate", "--quantiles", "0.5=900,0.95=3200")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "stops scaling" in done.stdout
    assert "computed and not measured" in done.stdout
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert 0.2 < used < 5


def test_a_loop_that_fits_nowhere_says_what_would(config: Path) -> None:
    done = planned(str(config), "--gpus", "1xA100", "--simulate", "--context", "32768", "--rows", "32768")
    assert done.returncode == 1
    assert "Nothing fits" in done.stdout


@pytest.mark.parametrize(("text", "said"), [("12\n0\n", "line 2"), ("", "no lengths"), ("9000\n", "--context")])
def test_lengths_that_are_none_are_refused(config: Path, text: str, said: str, tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.txt"
    lengths.write_text(text)
    done = planned(str(config), "--gpus", "8xH200", "--simulate", "--context", "40000", "--lengths", str(lengths))
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout


def test_where_nothing_fits_it_says_what_would(config: Path) -> None:
    done = planned(str(config), "--gpus", "1xA100", "--context", "32768", "--rows", "32768")
    assert done.returncode == 1
    assert "Nothing fits" in done.stdout
    assert "--precision int4" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpus", "8xH20"), "did you mean H200"),
        (("--gpus", "many"), "Known are"),
        (("--gpus", "1xH200", "--response", "5000"), "--response 5000"),
        (("--gpus", "1xH200", "--context", "50000"), "--context 50000"),
        (("--gpus", "1xH200", "--batch", "0"), "--batch"),
        (("--gpus", "8xH200", "--mesh", "tp=3"), "--mesh: "),
        (("--gpus", "8xH200", "--mesh", "dp=8"), "'dp=8' is no axis"),
        (("--gpus", "8xH200", "--mesh", "pp=2,tp=8"), "--mesh pp=2,tp=8 wants 16 devices"),
        (("--gpus", "8xH200", "--lengths", "config.json"), "--lengths"),
        (("--gpus", "8xH200", "--seed", "0"), "give --simulate as well"),
        (("--gpus", "8xH200", "--simulate", "--staleness", "0,many"), "'many' is no number of steps"),
        (("--gpus", "8xH200", "--simulate", "--quantiles", "0.5"), "'0.5' is no quantile"),
        (("--gpus", "8xH200", "--simulate", "--batch", "99999"), "--batch 99999 with --group 8"),
        ((), "--gpus"),
    ],
)
def test_what_cannot_be_is_refused(config: Path, arguments: tuple[str, ...], said: str) -> None:
    done = planned(str(config), *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "model type"),
        (
            json.dumps({key: each for key, each in PUBLISHED["Qwen3-8B"][0].items() if key != "hidden_size"}),
            "hidden_size",
        ),
        ("[]", "no JSON object"),
    ],
)
def test_a_configuration_that_lacks_something_is_refused_with_the_field(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    done = planned(str(file), "--gpus", "1xH200")
    assert done.returncode == 2
    assert said in done.stderr


def test_prices_that_are_none_are_refused(config: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("H999 = 3.0\n")
    done = planned(str(config), "--gpus", "1xH200", "--prices", str(prices))
    assert done.returncode == 2
    assert "H999" in done.stderr


@pytest.mark.parametrize(
    ("name", "said"), [("smollm2-153m", "smollm2-135m"), ("{}/confg.json", "{}/config.json"), ("qwen3-nothing", "")]
)
def test_a_model_that_is_not_there_is_refused(config: Path, name: str, said: str) -> None:
    done = planned(name.format(config.parent), "--gpus", "1xH200")
    assert done.returncode == 2
    assert "neither a model folder" in done.stderr
    assert ("Did you mean" in done.stderr) == bool(said)
    assert said.format(config.parent) in done.stderr
