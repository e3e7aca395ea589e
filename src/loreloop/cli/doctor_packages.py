"""Which versions of Python and of its packages a set-up has, held against what the package asks for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loreloop.host.findings import Finding

# As packages write down what they need: a name, perhaps with extras, bounds, and when it is needed.
NEEDED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*\(?(?P<bounds>[^;()]*)\)?\s*(?:;(?P<when>.*))?")
OF_EXTRA = re.compile(r"extra == ['\"]([^'\"]+)['\"]")
BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9][0-9A-Za-z.+!]*)")
NOT_FOR_USERS = ("test", "check", "examples")  # extras of those who change the code


class Need(NamedTuple):
    """A package and its bounds, as in `>=2.11,<3`; `extra` is empty for what is always needed."""

    name: str
    bounds: str
    extra: str


def packages() -> Iterator[Finding]:
    """Python, the libraries that are always needed, and the extras."""
    import platform
    from importlib.metadata import PackageNotFoundError, metadata, requires

    from loreloop.host.findings import Finding

    here = platform.python_version()
    try:
        bounds, lines = metadata("loreloop")["Requires-Python"] or "", requires("loreloop") or []
    except PackageNotFoundError:  # run from its sources
        yield Finding("python", "ok", here)
        advice = "install it: pip install -e ."
        yield Finding("libraries", "warning", "loreloop is not installed, so nothing says what it needs", advice)
        return
    fits = within(here, bounds)
    advice = "" if fits else "install another Python, and loreloop in it"
    yield Finding("python", "ok" if fits else "wrong", f"{here}; {bounds} is asked for", advice)
    needs = [need for line in lines if (need := need_of(line)) is not None]
    yield from _libraries([need for need in needs if not need.extra])
    yield from _extras([need for need in needs if need.extra])


def need_of(line: str) -> Need | None:
    """A line of what a package needs; None for one that is not for this system."""
    import sys

    found = NEEDED.fullmatch(line.strip())
    if found is None:
        return None
    when = found["when"] or ""
    extra = OF_EXTRA.search(when)
    platform = re.search(r"sys_platform == ['\"]([^'\"]+)['\"]", when)
    if platform is not None and platform[1] != sys.platform:
        return None
    return Need(found["name"], found["bounds"].strip(), extra[1] if extra else "")


def within(version: str, bounds: str) -> bool:
    """Whether a version is in bounds such as `>=2.11,<3`; what is written otherwise is taken for met."""
    return all(_holds(version, sign, bound) for sign, bound in BOUND.findall(bounds))


def _holds(version: str, sign: str, bound: str) -> bool:
    # Compared as numbers; a shorter version has zeros behind, as in 3 and 3.0.
    pairs = list(zip_longest(_numbers(version), _numbers(bound), fillvalue=0))
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    return {
        ">=": ours >= theirs,
        "<=": ours <= theirs,
        ">": ours > theirs,
        "<": ours < theirs,
        "==": ours == theirs,
        "!=": ours != theirs,
    }[sign]


def _numbers(version: str) -> list[int]:
    """2, 13 and 0 of `2.13.0+cpu`."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return [int(number) for number in found[0].split(".")] if found else []


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries(needs: list[Need]) -> Iterator[Finding]:
    from loreloop.host.findings import Finding

    n_good = 0
    for need in needs:
        found = _installed(need.name)
        if found is not None and within(found, need.bounds):
            n_good += 1
            continue
        said = f"{need.name} {found or 'is not installed'}; {need.bounds or 'any version'} is asked for"
        yield Finding("library", "wrong", said, f"pip install '{need.name}{need.bounds}'")
    torch = _installed("torch")
    yield Finding("libraries", "ok", f"{n_good} of {len(needs)} are in their ranges; torch {torch}")


def _extras(needs: list[Need]) -> Iterator[Finding]:
    """Which extras are complete; of an installed package that is out of its range, a line of its own."""
    from loreloop.host.findings import Finding

    lacking: dict[str, list[str]] = defaultdict(list)
    extras = dict.fromkeys(need.extra for need in needs if need.extra not in NOT_FOR_USERS)
    for need in needs:
        found = _installed(need.name)
        if found is None:
            lacking[need.extra].append(need.name)
        elif need.extra in extras and not within(found, need.bounds):
            said = f"{need.name} {found}; the extra {need.extra} asks for {need.bounds}"
            yield Finding("extra", "warning", said, f"pip install 'loreloop[{need.extra}]'")
    there = [extra for extra in extras if not lacking[extra]]
    absent = [f"{extra} ({', '.join(lacking[extra])})" for extra in extras if lacking[extra]]
    said = f"installed: {', '.join(there) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    yield Finding("extras", "ok", said)
    if _installed("tinker") is None:
        found = "without the tinker SDK there are no fine-tuning jobs and no `loreloop train`"
        yield Finding("jobs", "warning", found, "pip install 'loreloop[learn]'")
