"""Formulas against Python's own reading of the same sums, and what is refused."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loreloop.learn.rewards.graders.formula import formula_of

NAMES = {"a": 0.5, "b_2": -3.0, "C": 7.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("2 ^ -1", 0.5),
        ("--1", 1),
        ("8 / 4 / 2", 1),
        ("8 - 4 - 2", 2),
        ("min(3, a, C) + max(b_2, 1)", 1.5),
        ("abs(b_2) + floor(2.7) + ceil(2.1)", 8),
        ("exp(0) + sqrt(9) + log(1)", 4),
        ("1e2 + .5 + 2.", 102.5),
        ("a", 0.5),
        (" \n a\t", 0.5),
    ],
)
def test_values(text: str, value: float) -> None:
    assert formula_of(text).evaluate(NAMES) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the end at character 1"),
        ("1 +", "the end at character 4"),
        ("1 2", "'2' at character 3"),
        ("(1", "a closing bracket"),
        ("1)", "')' at character 2"),
        ("pow(2, 3)", "there are min, max"),
        ("__import__('os')", "calls '__import__'"),
        ("a.b", "'.' at character 2"),
        ("a ** b", "'*' at character 4"),
        ("sqrt(1, 2)", "it takes 1 to 1"),
        ("min()", "')' at character 5"),
        ("a = 1", "'='"),
        ("(" * 100 + "1" + ")" * 100, "levels deep"),
        ("-" * 100 + "1", "levels deep"),
        ("1 ^ " * 100 + "1", "levels deep"),
        ("1+" * 3000 + "1", "at most 4096"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="formula") as raised:
        formula_of(text)
    assert said in str(raised.value)


def expressions() -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["a", "b_2", "C", "1", "2.5", "0"])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        infix = st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        )
        chain = st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(" ".join)
        calls = st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})")
        return st.one_of(
            infix, chain, calls, inner.map(lambda text: f"-({text})"), inner.map(lambda text: f"abs({text})")
        )

    return st.recursive(leaves, larger, max_leaves=20)


@given(expressions())
@settings(deadline=None)
def test_sums_are_read_as_python_reads_them(text: str) -> None:
    try:
        expected = float(eval(text, {"__builtins__": {}, "min": min, "max": max, "abs": abs}, dict(NAMES)))
    except ZeroDivisionError:
        with pytest.raises(ArithmeticError):
            formula_of(text).evaluate(NAMES)
        return
    assert math.isclose(formula_of(text).evaluate(NAMES), expected, rel_tol=1e-9, abs_tol=1e-9)


@given(st.text(alphabet="ab01.()+-*/^, minsqrt", max_size=60))
@settings(deadline=None)
def test_any_text_is_a_formula_or_a_value_error(text: str) -> None:
    try:
        formula = formula_of(text)
    except ValueError:
        return
    if formula.names <= NAMES.keys():
        with contextlib.suppress(ArithmeticError, ValueError):
            formula.evaluate(NAMES)
