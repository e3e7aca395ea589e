"""Every grader's JSON over written-out answers, in this process and with a scripted model; code in the real sandbox."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loreloop.learn.examples import Task
from loreloop.learn.rewards.graders.grader import GraderTrouble, Means, Question, Said
from loreloop.learn.rewards.graders.judges import Pairwise
from loreloop.learn.rewards.graders.reading import GraderReward, as_json, grader_of, models_of
from loreloop.learn.rewards.ranking import win_rates
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.rewards.sandbox import CodeSandbox, Limits
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, MadeCall, Turn

PROMPT = Conversation((Turn("user", "What is 2 + 2?"),))


class Bench:
    """A sandbox and a loop; a scripted model answers what `says` gives for a question."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.box = CodeSandbox(workers=2)
        self.asked: list[Question] = []

    def score(
        self, grader: dict[str, Any], answer: str | Answer, item: dict[str, Any] | None = None, says: Any = None
    ) -> Score:
        async def chat(question: Question) -> Said:
            self.asked.append(question)
            said = says(question) if callable(says) else says
            if isinstance(said, GraderTrouble):
                raise said
            return Said(said if isinstance(said, str) else json.dumps(said), 7)

        means = Means(self.box, chat if says is not None else None, limits=Limits(seconds=3, cpu_seconds=3))
        reward = GraderReward(grader_of({"name": "g", **grader}), means)
        answer = answer if isinstance(answer, Answer) else Answer(answer)
        return self.loop.run_until_complete(reward(answer, Task(PROMPT, item or {})))

    def value(self, grader: dict[str, Any], answer: str | Answer, item: dict[str, Any] | None = None) -> float:
        score = self.score(grader, answer, item)
        assert score.trouble is None, score.trouble
        return score.value


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.loop.run_until_complete(bench.box.close())
    bench.loop.close()


def check(operation: str, **fields: str) -> dict[str, Any]:
    usual = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    return {"type": "string_check", "operation": operation} | usual | fields


@pytest.mark.parametrize(
    ("operation", "answer", "reward"),
    [
        ("eq", "Paris", 1),
        ("eq", "paris", 0),
        ("eq", "Paris ", 0),
        ("ne", "Rome", 1),
        ("ne", "Paris", 0),
        ("like", "It is Paris.", 1),
        ("like", "It is paris.", 0),
        ("ilike", "It is paris.", 1),
        ("ilike", "Rome", 0),
    ],
)
def test_string_check(bench: Bench, operation: str, answer: str, reward: float) -> None:
    assert bench.value(check(operation), answer, {"answer": "Paris"}) == reward


ITEM = {"a": {"b": [10, {"c": "deep"}]}, "text": "x", "none": None, "yes": True, "with-sign": 1.5}
CALL = MadeCall("call_1", "add", '{"a": 2}')


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{{item.text}}", "x"),
        ("{{ item.a.b[1].c }}!", "deep!"),
        ("{{item.a}}", '{"b": [10, {"c": "deep"}]}'),
        ("{{item['with-sign']}}{{item.yes}}{{item.none}}", "1.5truenull"),
        ("{{sample.output_json.n[0]}}", "3"),
        ("{{sample.output_tools[0].function.name}}", "add"),
        ("{{sample.choices[0].message.content}}", '{"n": [3]}'),
        ("no place, { single }", "no place, { single }"),
    ],
)
def test_templates_are_filled(bench: Bench, template: str, filled: str) -> None:
    answer = Answer('{"n": [3]}', (CALL,))
    assert bench.value(check("eq", input=template, reference=filled), answer, ITEM) == 1


@pytest.mark.parametrize(
    ("template", "trouble"),
    [
        ("{{item.missing}}", "invalid_variable: item.missing leads nowhere"),
        ("{{item.a.b[7]}}", "invalid_variable"),
        ("{{item.text.more}}", "invalid_variable"),
        ("{{sample.output_tools[0].function.name}}", "invalid_variable"),
        ("{{sample.output_json.n}}", "sample_parse: sample.output_json was asked for"),
    ],
)
def test_a_path_that_leads_nowhere_is_trouble(bench: Bench, template: str, trouble: str) -> None:
    score = bench.score(check("eq", input=template), "no JSON", ITEM)
    assert score.trouble is not None
    assert score.trouble.startswith(trouble)
    assert score.value == 0


@pytest.mark.timed
@pytest.mark.parametrize("text", ["{{" * 300_000, "{{item.x}" * 100_000, "{{item.t}} " * 1000])
def test_templates_are_read_in_the_time_of_their_length(bench: Bench, text: str) -> None:
    started = time.perf_counter()
    filled = text.replace("{{item.t}}", "")
    assert bench.value(check("eq", input=text, reference=filled), "", {"t": ""}) == 1
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("path", ["item[0]x", "item['a']b", "item..x", "item.x y"])
def test_steps_of_a_path_need_their_dots(path: str) -> None:
    with pytest.raises(BadRequest, match="is no path"):
        grader_of({"name": "g", **check("eq", input="{{" + path + "}}")})


def test_what_a_template_may_not_hold(bench: Bench) -> None:
    with pytest.raises(BadRequest, match="at most 1000 places"):
        grader_of({"name": "g", **check("eq", input="{{item.x}}" * 1001)})
    assert "makes more than" in str(bench.score(check("eq", input="{{item.t}}" * 3), "", {"t": "x" * 500_000}).trouble)
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    assert "nested too deeply" in str(bench.score(check("eq", input="{{item.t}}"), "", {"t": deep}).trouble)
    assert "nested too deeply" in str(bench.score(PYTHON, "", {"n": 1, "t": deep}).trouble)
    braces = {"type": "unit_tests", "function": "f", "cases": "{{item.x}}}}"}
    assert str(bench.score(braces, "x", {"x": []}).trouble).startswith("invalid_variable")


def test_what_fills_a_template_is_no_template(bench: Bench) -> None:
    assert bench.value(
        check("eq", input="{{sample.output_text}}", reference="{{item.t}}"), "{{item.t}}", {"t": "{{item.t}}"}
    )


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ([], "`grader` must be an object"),
        ({"type": "magic"}, "`grader.type` is 'magic'; there are string_check, text_similarity"),
        ({"type": "string_check", "name": "g"}, "this field is missing"),
        (check("eq") | {"name": 5}, "`grader.name`: expected `str`, got `int`"),
        (check("is") | {"name": "g"}, "`grader.operation`: invalid enum value 'is'"),
        (check("eq") | {"name": "g", "pass_threshold": 1}, "`grader` has no field `pass_threshold`"),
        (check("eq", input="{{items.x}}") | {"name": "g"}, "`input`: {{items.x}} must begin with item or sample"),
        (
            check("eq", input="{{sample.output_audio}}") | {"name": "g"},
            "names no field of sample; there are output_text",
        ),
        (check("eq", input="{{item.x | upper}}") | {"name": "g"}, "is no path"),
        ({"type": "python", "name": "g", "source": "def grade(sample, item)"}, "`source`: expected ':' in line 1"),
        ({"type": "python", "name": "g", "source": "def score(a): pass"}, "it defines no function grade(sample, item)"),
        ({"type": "multi", "name": "g", "graders": {}, "calculate_output": "1"}, "`grader.graders`"),
        (
            {"type": "multi", "name": "g", "graders": {"a": check("eq")}, "calculate_output": "a + b"},
            "`calculate_output`: 'b' is none of the graders, a",
        ),
        ({"type": "multi", "name": "g", "graders": {"a": check("eq")}, "calculate_output": "a +"}, "the end"),
        (
            {"type": "multi", "name": "g", "graders": {"a b": check("eq")}, "calculate_output": "1"},
            "no name that a formula",
        ),
        (
            {"type": "multi", "name": "g", "graders": {"a": check("eq") | {"reference": 1}}, "calculate_output": "a"},
            "`grader.graders[...].reference`: expected `str`",
        ),
        (
            {"type": "multi", "name": "g", "graders": [check("eq")], "calculate_output": "a"},
            "`grader.graders[0].name` must be a text",
        ),
        ({"type": "regex", "name": "g", "pattern": "("}, "`pattern`: missing )"),
        ({"type": "json_schema", "name": "g", "schema": {"typ": 1}}, "`schema.typ`: this keyword is not checked"),
        ({"type": "json_schema", "name": "g", "schema": {"minLength": "x"}}, "`schema`: "),
        ({"type": "length", "name": "g", "max": 3, "min": 4}, "`min`: 4 is more than `max`, 3"),
        ({"type": "unit_tests", "name": "g"}, "give these or `tests`"),
        (
            {"type": "mixture", "name": "g", "graders": {"a": check("eq")}, "weights": {"b": 1}},
            "must be the graders' names",
        ),
        (
            {"type": "label_model", "name": "g", "model": "m", "input": [], "labels": ["a"], "passing_labels": ["a"]},
            "`grader.input`: expected `array` of length >= 1",
        ),
        (
            {
                **{"type": "label_model", "name": "g", "model": "m", "input": [{"role": "user", "content": "x"}]},
                **{"labels": ["a"], "passing_labels": ["b"]},
            },
            "`passing_labels`: 'b' is none of the labels",
        ),
        (
            {
                "type": "score_model",
                "name": "g",
                "model": "m",
                "input": [{"role": "user", "content": "x"}],
                "range": [1, 0],
            },
            "`range`: its first number must be the smaller one",
        ),
        (
            {
                "type": "score_model",
                "name": "g",
                "model": "m",
                "input": [{"role": "user", "content": {"type": "input_audio"}}],
            },
            "input_audio",
        ),
    ],
)
def test_a_wrong_grader_is_refused_with_the_field(grader: Any, message: str) -> None:
    with pytest.raises(BadRequest) as raised:
        grader_of(grader)
    assert message in raised.value.message


PYTHON = {"type": "python", "source": "def grade(sample, item):\n    return item['n'] + len(sample['output_text'])"}


def test_python_gets_sample_and_item(bench: Bench) -> None:
    assert bench.value(PYTHON, "four", {"n": 0.5}) == 4.5
    seen = "def grade(sample, item): return float(sample['output_json']['x'] == 1 and not sample['output_tools'])"
    assert bench.value({"type": "python", "source": seen, "image_tag": "2025-05-08"}, '{"x": 1}') == 1
    assert bench.value({"type": "python", "source": "import json\ngrade = lambda sample, item: True"}, "") == 1


@pytest.mark.parametrize(
    ("body", "trouble"),
    [
        ("return 1 / 0", "python_grader_runtime: ZeroDivisionError: division by zero\nline 2, in grade"),
        ("return float('nan')", "python_grader_runtime: grade gave nan"),
        ("return float('inf')", "python_grader_runtime: grade gave inf"),
        ("return 10 ** 400", "python_grader_runtime: grade gave 1000"),
        ("return 'good'", "python_grader_runtime: grade gave 'good', which is no number"),
        ("return None", "python_grader_runtime: grade gave None, which is no number"),
        ("while True: pass", "unresponsive_reward: the code took more than 3 s"),
        ("return len(bytearray(10 << 30))", "python_grader_runtime: MemoryError"),
        ("raise SystemExit", "python_grader_runtime: RuntimeError: the code ended itself"),
    ],
)
def test_python_that_goes_wrong_is_trouble(bench: Bench, body: str, trouble: str) -> None:
    score = bench.score({"type": "python", "source": f"def grade(sample, item):\n    {body}"}, "x")
    assert score.trouble is not None
    assert score.trouble.startswith(trouble)
    assert score.value == 0


def test_python_without_a_sandbox_is_trouble() -> None:
    reward = GraderReward(grader_of({"name": "g", **PYTHON}), Means())
    score = asyncio.run(reward(Answer("x"), Task(PROMPT)))
    assert score.trouble == "python_grader_server: no code is run here"
    off = GraderReward(grader_of({"name": "g", **PYTHON}), Means(CodeSandbox("off")))
    assert "switched off" in str(asyncio.run(off(Answer("x"), Task(PROMPT))).trouble)


JUDGED = [{"role": "developer", "content": "Grade."}, {"role": "user", "content": "{{sample.output_text}}"}]


def test_score_model(bench: Bench) -> None:
    grader = {"type": "score_model", "model": "m", "input": JUDGED, "range": [0, 10]}
    sampling = {"temperature": 0.5, "seed": 3, "max_completions_tokens": 20, "reasoning_effort": "low", "top_p": 0.9}
    assert bench.score(grader | {"sampling_params": sampling}, "an answer", says={"result": 7}).value == 7
    question = bench.asked[-1]
    assert [turn.role for turn in question.turns] == ["system", "user"]
    assert question.turns[0].content.startswith("Grade.\n\nAnswer with JSON")
    assert question.turns[1].content == "an answer"
    assert question.schema is not None
    assert question.schema["properties"]["result"] == {"type": "number", "minimum": 0, "maximum": 10}
    assert (question.temperature, question.seed, question.max_tokens, question.effort) == (0.5, 3, 20, "low")
    parts = [{"type": "input_text", "text": "{{item.x}}"}, "b", {"type": "output_text", "text": "c"}]
    grader["input"] = [{"role": "user", "content": parts, "type": "message"}]
    bench.score(grader, "y", {"x": "a"}, says={"result": 1})
    assert bench.asked[-1].turns[-1].content == "abc"
    grader["input"] = [{"role": "user", "content": [{"type": "input_image", "image_url": "{{item.x}}"}]}]
    bench.score(grader, "y", {"x": "data:image/png;base64,"}, says={"result": 1})
    assert bench.asked[-1].turns[-1].pictures[0].url == "data:image/png;base64,"


@pytest.mark.parametrize("said", ["no JSON", {"result": "7"}, {"result": 11}, {"result": True}, [], {}, "NaN"])
def test_a_model_that_gives_no_score_is_trouble(bench: Bench, said: Any) -> None:
    score = bench.score({"type": "score_model", "model": "m", "input": JUDGED}, "x", says=said)
    assert str(score.trouble).startswith("model_grader_parse: the model 'm'")


def test_models_that_cannot_be_asked_are_trouble(bench: Bench) -> None:
    grader = {"type": "score_model", "model": "m", "input": JUDGED}
    assert bench.score(grader, "x").trouble == "model_grader_server: no model can be asked here"
    gone = GraderTrouble("model_grader_server", "there is no model m")
    assert bench.score(grader, "x", says=gone).trouble == "model_grader_server: there is no model m"


def test_label_model(bench: Bench) -> None:
    grader = {
        "type": "label_model",
        "model": "m",
        "input": JUDGED,
        "labels": ["good", "bad"],
        "passing_labels": ["good"],
    }
    assert bench.score(grader, "x", says={"label": "good"}).value == 1
    assert bench.score(grader, "x", says={"label": "bad"}).value == 0
    assert "chose the label 'other'" in str(bench.score(grader, "x", says={"label": "other"}).trouble)


def test_multi(bench: Bench) -> None:
    graders = {"same": check("eq"), "size": {"type": "length", "max": 5, "unit": "characters"}}
    grader = {"type": "multi", "graders": graders, "calculate_output": "0.75 * same + 0.25 * min(size, 1)"}
    score = bench.score(grader, "Paris", {"answer": "Paris"})
    assert (score.value, score.parts) == (1, {"same": 1, "size": 1})
    assert bench.value(grader, "Rome", {"answer": "Paris"}) == 0.25
    as_list = grader | {"graders": [{**one, "name": name} for name, one in graders.items()]}
    assert bench.value(as_list, "Rome", {"answer": "Paris"}) == 0.25
    single = {"type": "multi", "graders": {**check("eq"), "name": "same"}, "calculate_output": "2 * same"}
    assert bench.value(single, "Paris", {"answer": "Paris"}) == 2


@pytest.mark.parametrize(
    "formula", ["1 / same", "log(same)", "(0 - 1) ^ 0.5 + same", "10 ^ 999", "exp(1e9)", "sqrt(same - 1)"]
)
def test_a_formula_without_a_value_is_trouble(bench: Bench, formula: str) -> None:
    grader = {"type": "multi", "graders": {"same": check("eq")}, "calculate_output": formula}
    assert str(bench.score(grader, "Rome", {"answer": "Paris"}).trouble).startswith("other: ")


def test_trouble_of_a_part_is_trouble_of_all(bench: Bench) -> None:
    graders = {"a": {"type": "length", "max": 9, "unit": "words"}, "b": check("eq", input="{{item.no}}")}
    score = bench.score({"type": "multi", "graders": graders, "calculate_output": "a"}, "x", {"answer": "x"})
    assert str(score.trouble).startswith("invalid_variable")
    mixture = {"type": "mixture", "graders": graders, "weights": {"a": 1, "b": 1}}
    assert str(bench.score(mixture, "x", {"answer": "x"}).trouble).startswith("invalid_variable")


def test_exact(bench: Bench) -> None:
    exact = {"type": "exact", "input": "{{sample.output_text}}", "reference": "{{item.a}}"}
    assert bench.value(exact, " caf\u0065\u0301\n", {"a": "café"}) == 1
    assert bench.value(exact, "Café", {"a": "café"}) == 0
    assert bench.value(exact | {"ignore_case": True}, "Café", {"a": "café"}) == 1


def test_regex(bench: Bench) -> None:
    boxed = {"type": "regex", "pattern": r"answer is (\d+)"}
    assert bench.value(boxed, "The answer is 42.") == 1
    assert bench.value(boxed, "The Answer is 42.") == 0
    assert bench.value(boxed | {"ignore_case": True}, "The Answer is 42.") == 1
    assert bench.value(boxed | {"whole": True}, "The answer is 42.") == 0
    assert bench.value(boxed | {"reference": "{{item.n}}"}, "The answer is 42.", {"n": 42}) == 1
    assert bench.value(boxed | {"reference": "{{item.n}}"}, "The answer is 42.", {"n": 4}) == 0


def test_a_regex_of_exponential_time_is_stopped(bench: Bench) -> None:
    score = bench.score({"type": "regex", "pattern": "(a+)+$"}, "a" * 50 + "b")
    assert str(score.trouble).startswith(("unresponsive_reward", "python_grader_runtime"))


def test_json_schema(bench: Bench) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    grader = {"type": "json_schema", "schema": schema}
    answers = {
        '{"n": 1}': 1,
        '{"n": 0}': 0,
        '{"n": 1.5}': 0,
        '{"n": true}': 0,
        "{}": 0,
        "[]": 0,
        "no": 0,
        '{"n": 2.0}': 1,
    }
    assert {answer: bench.value(grader, answer) for answer in answers} == answers
    slow = {"type": "json_schema", "schema": {"type": "string", "pattern": "^(a+)+$"}}
    assert bench.value(slow, '"aaa"') == 1
    assert bench.score(slow, json.dumps("a" * 50 + "b")).trouble is not None


@pytest.mark.parametrize(
    ("schema", "answer", "reward"),
    [
        ({"type": "number"}, "NaN", 0),
        ({"type": "number"}, "-Infinity", 0),
        ({"multipleOf": 5}, "1" + "0" * 400, 1),
        ({"multipleOf": 3}, "1" + "0" * 400, 0),
        ({"multipleOf": 1e-10}, "1e308", 1),
        ({"multipleOf": 0.5}, "1.25", 0),
    ],
)
def test_json_schema_and_numbers_at_the_edge(bench: Bench, schema: Any, answer: str, reward: float) -> None:
    assert bench.value({"type": "json_schema", "schema": schema}, answer) == reward


@pytest.mark.parametrize("schema", [{"minimum": "x"}, {"required": 5}, {"multipleOf": 2.5}, {"enum": 1}])
def test_a_schema_that_is_wrong_further_in_is_trouble(bench: Bench, schema: Any) -> None:
    within = {"type": "json_schema", "schema": {"properties": {"a": schema}}}
    value = {"required": "{}", "multipleOf": "1" + "0" * 400}.get(*schema, "1")
    assert str(bench.score(within, '{"a": ' + value + "}").trouble).startswith("other: the schema could not be checked")


FENCED = "Here:\n```python\ndef twice(x):\n    return 2 * x\n```\nIt doubles."
CASES = [
    {"arguments": [1], "expected": 2},
    {"arguments": ["a"], "expected": "aa"},
    {"arguments": [0.1], "expected": 0.3},
]


def test_unit_tests_by_cases(bench: Bench) -> None:
    grader = {"type": "unit_tests", "function": "twice", "cases": CASES}
    score = bench.score(grader, FENCED)
    assert (score.value, score.parts) == (pytest.approx(2 / 3), {"passed": 2, "tests": 3})
    assert bench.value(grader | {"credit": "all"}, FENCED) == 0
    assert bench.value(grader | {"cases": "{{item.cases}}"}, FENCED, {"cases": CASES[:2]}) == 1
    assert bench.value(grader, "def twice(x): return 2 * x") == pytest.approx(2 / 3)
    assert bench.value(grader, "I do not know.") == 0
    assert str(bench.score(grader | {"cases": "{{item.cases}}"}, FENCED, {"cases": 5}).trouble).startswith(
        "invalid_var"
    )


def test_only_blocks_of_python_are_code(bench: Bench) -> None:
    grader = {"type": "unit_tests", "function": "twice", "cases": CASES[:2]}
    before = "So:\n```text\ntwice(1) is 2\n```\nThus:\n"
    assert bench.value(grader, before + FENCED) == 1
    assert bench.value(grader, FENCED + "\n```json\n{}\n```") == 1
    assert bench.value(grader, FENCED.replace("python", "")) == 1
    assert bench.value(grader, FENCED.replace("python", "Python3 title=a").replace("\n", "\r\n")) == 1


def test_whole_numbers_beyond_floats_are_compared(bench: Bench) -> None:
    def value(expected: int) -> float:
        cases = [{"arguments": [], "expected": expected}]
        return bench.value({"type": "unit_tests", "function": "f", "cases": cases}, "def f(): return 10 ** 400")

    assert (value(10**400), value(10**400 + 1), value(1)) == (1, 0, 0)


def test_unit_tests_by_asserts(bench: Bench) -> None:
    tests = "def test_a(): assert twice(2) == 4\ndef test_b(): assert twice(2) == 5"
    assert bench.value({"type": "unit_tests", "tests": tests}, FENCED) == 0.5
    assert bench.value({"type": "unit_tests", "tests": "assert twice(3) == 6"}, FENCED) == 1


@pytest.mark.parametrize(
    "cheat",
    [
        "import os; os.write(3, b'{\"result\": 2}'); os._exit(0)",
        "import sys; sys.exit(0)",
        "def twice(x):\n    class Any:\n        def __eq__(self, other): return True\n    return Any()",
        "def _call(name, arguments): return 2",
        "def twice(x):\n    while True: pass",
    ],
)
def test_answers_that_cheat_pass_no_case_that_they_do_not_compute(bench: Bench, cheat: str) -> None:
    cases = [{"arguments": [n], "expected": 3 * n + 1} for n in range(1, 4)]
    assert bench.value({"type": "unit_tests", "function": "twice", "cases": cases}, f"```python\n{cheat}\n```") == 0


def test_tool_calls(bench: Bench) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grader = {"type": "tool_call", "tools": [{"name": "add", "parameters": parameters}]}
    good, unknown = MadeCall("1", "add", '{"a": 1}'), MadeCall("2", "sub", "{}")
    broken, wrong = MadeCall("3", "add", '{"a": '), MadeCall("4", "add", '{"a": "x"}')
    assert bench.value(grader, Answer("", (good,))) == 1
    assert bench.value(grader, Answer("", (good, unknown))) == 0.5
    assert bench.value(grader, Answer("", (broken,))) == 0
    assert bench.value(grader, Answer("", (wrong,))) == 0
    assert bench.value(grader, Answer("")) == 0
    assert bench.value(grader | {"min_calls": 0}, Answer("")) == 1
    assert bench.value(grader | {"max_calls": 1}, Answer("", (good, good))) == 0
    wanted = grader | {"wanted": [{"name": "add", "arguments": {"a": "{{item.n}}"}}]}
    assert bench.value(wanted, Answer("", (good,)), {"n": 1}) == 1
    assert bench.value(wanted, Answer("", (good,)), {"n": 2}) == 0
    assert bench.value(wanted, Answer("", (good, good)), {"n": 1}) == 0


def test_wanted_arguments_are_filled_in_and_compared_as_json(bench: Bench) -> None:
    wanted = {"type": "tool_call", "wanted": [{"name": "add", "arguments": {"a": ["{{item.n}}", {"b": "{{item.s}}"}]}}]}
    right, wrong = '{"a": [1, {"b": "x"}]}', '{"a": [true, {"b": "x"}]}'
    calls = [Answer("", (MadeCall("1", "add", made),)) for made in (right, wrong)]
    assert [bench.value(wanted, answer, {"n": 1, "s": "x"}) for answer in calls] == [1, 0]
    with pytest.raises(BadRequest, match="must begin with item"):
        grader_of({"name": "g", "type": "tool_call", "wanted": [{"name": "a", "arguments": {"a": ["{{x}}"]}}]})


def test_the_length_of_a_text_whose_tokens_nobody_counted_is_trouble(bench: Bench) -> None:
    assert "nobody knows how many tokens" in str(
        bench.score({"type": "length", "max": 3}, "one two three four").trouble
    )


def test_length(bench: Bench) -> None:
    grader = {"type": "length", "max": 100, "buffer": 50}
    rewards = {n: bench.value(grader, Answer("", n_tokens=n)) for n in (0, 100, 125, 150, 1000)}
    assert rewards == {0: 1, 100: 1, 125: 0.5, 150: 0, 1000: 0}
    assert bench.value({"type": "length", "min": 2, "max": 3, "unit": "words"}, "one, two") == 1
    assert bench.value({"type": "length", "min": 2, "max": 3, "unit": "words"}, "one") == 0


def test_mixture(bench: Bench) -> None:
    graders = {"right": check("eq"), "long": {"type": "length", "max": 3, "unit": "characters"}}
    grader = {"type": "mixture", "graders": graders, "weights": {"right": 3, "long": 1}}
    assert bench.value(grader, "Paris", {"answer": "Paris"}) == 0.75
    assert bench.value(grader, "Ro", {"answer": "Paris"}) == 0.25
    assert bench.value(grader | {"weights": {"right": 1, "long": -1}}, "Ro", {"answer": "Paris"}) == -0.5


def test_rubric(bench: Bench) -> None:
    criteria = [{"text": "polite", "weight": 2}, {"text": "names {{item.town}}"}, {"text": "lies", "weight": -1}]
    grader = {"type": "rubric", "model": "m", "criteria": criteria}

    def says(question: Question) -> dict[str, str]:
        text = question.turns[-1].content
        assert "What is 2 + 2?" in text
        return {"label": "yes" if "polite" in text or "lies" in text else "no"}

    score = bench.score(grader, "An answer", {"town": "Paris"}, says=says)
    assert score.parts == {"criterion_0": 1, "criterion_1": 0, "criterion_2": 1}
    assert score.value == pytest.approx((2 - 1 + 1) / (3 + 1))
    assert "names Paris" in bench.asked[-2].turns[-1].content


def test_pairwise_swaps_places(bench: Bench) -> None:
    grader = {"type": "pairwise", "model": "m", "reference": "{{item.other}}", "criteria": ["true"]}
    always_first = bench.score(grader, "mine", {"other": "theirs"}, says={"label": "A"})
    assert (always_first.value, always_first.parts) == (0.5, {"as_a": 1, "as_b": 0})

    def prefers(wanted: str) -> Any:
        return lambda question: {"label": "A" if f"Answer A:\n{wanted}" in question.turns[-1].content else "B"}

    assert bench.score(grader, "mine", {"other": "theirs"}, says=prefers("mine")).value == 1
    bench.score(grader | {"criteria": ["It names {{item.other}}."]}, "a", {"other": "Rome"}, says={"label": "A"})
    assert "It names Rome." in bench.asked[-1].turns[-1].content
    assert bench.score(grader, "mine", {"other": "theirs"}, says=prefers("theirs")).value == 0


def test_a_grader_goes_back_to_its_json() -> None:
    plain = {"name": "g", **check("eq")}
    assert as_json(grader_of(plain)) == plain
    judge = {"type": "score_model", "name": "j", "model": "m", "input": JUDGED}
    multi = {"type": "multi", "name": "g", "graders": {"j": judge}, "calculate_output": "j"}
    assert grader_of(as_json(grader_of(multi))) == grader_of(multi)
    assert models_of(grader_of(multi)) == ("m",)


def test_a_group_is_ranked_by_comparisons() -> None:
    judge = grader_of({"type": "pairwise", "name": "g", "model": "m", "reference": "", "criteria": ["longer"]})
    assert isinstance(judge, Pairwise)

    async def longer(question: Question) -> Said:
        text = question.turns[-1].content
        if "broken" in text:
            raise GraderTrouble("model_grader_server", "gone")
        a, b = (text.split(f"Answer {which}:\n")[1].split("\n")[0] for which in "AB")
        return Said(json.dumps({"label": "A" if len(a) > len(b) else "B"}))

    def ranked(*answers: str) -> list[Score]:
        return asyncio.run(win_rates(judge, "task", answers, Means(chat=longer)))

    assert [score.value for score in ranked("xx", "x", "xxx")] == [0.5, 0, 1]
    assert [score.value for score in ranked("xx", "xx", "x")] == [0.75, 0.75, 0]
    assert [score.value for score in ranked("x")] == [0.5]
    with_one_broken = ranked("xx", "x", "broken")
    assert [score.value for score in with_one_broken[:2]] == [1, 0]
    assert with_one_broken[2].trouble == "model_grader_server: gone"
