"""What people expect of a repository: the newest entry of the changelog, what CI and hooks run, the licence's name."""

import re
import tomllib
from pathlib import Path

from click.testing import CliRunner
from packaging.requirements import Requirement

from loreloop import __version__
from loreloop.cli.main import cli

ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_newest_entry_of_the_changelog_is_the_version() -> None:
    versions = re.findall(r"^## \[(\S+)\]", CHANGELOG, re.M)
    assert versions[0] == __version__
    assert len(set(versions)) == len(versions)
    assert f'"version":"{__version__}"' in (ROOT / "docs/quickstart.md").read_text()


def test_the_changelog_has_the_form_that_it_names() -> None:
    entries = re.split(r"^## ", CHANGELOG, flags=re.M)[1:]
    dates = [re.match(r"\[\d+\.\d+\.\d+\] - (20\d\d-\d\d-\d\d)\n", entry) for entry in entries]
    assert all(dates), entries
    assert sorted((date[1] for date in dates if date), reverse=True) == [date[1] for date in dates if date]
    kinds = re.findall(r"^### (.+)$", CHANGELOG, re.M)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_version_is_printed() -> None:
    assert __version__ in CliRunner().invoke(cli, ["--version"]).stdout


def test_the_licence_is_the_one_of_the_package() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert f"SPDX-License-Identifier: {named}" in (ROOT / "LICENSE").read_text()


def test_ci_and_hooks_run_what_the_makefile_runs() -> None:
    assert "- run: .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()
    check = re.search(r"^check:.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert check
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in re.findall(r"\$\(BIN\)/(\S+)", check[0]):
        assert f".venv/bin/{tool}" in hooks, tool
    for target in re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_the_lock_file_has_hashes_and_no_addresses_and_fits_what_is_asked_for() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+!]+ --hash=sha256:[0-9a-f]{64}", line), line
    locked = dict(line.split(" ")[0].split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in (*project["dependencies"], *extras["demo"], *extras["test"], *extras["check"]):
        asked = Requirement(wanted)
        assert asked.specifier.contains(locked[asked.name.lower()], prereleases=True), wanted
