"""Environments as their authors see them: tools, faults, rewards of outcome, form and economy."""

import asyncio
import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loreloop.learn.environments.calculator import Calculator, computed
from loreloop.learn.environments.environment import Environment, Step
from loreloop.learn.environments.flaky_shop import FlakyShop, shop_tasks
from loreloop.learn.environments.given import python_tool, server_tools
from loreloop.learn.environments.named import Wanted, named
from loreloop.learn.environments.puzzles import Puzzles
from loreloop.learn.environments.shapes import MOST_SHAPES, SHAPES, Scene, Shapes, drawing, shape_tasks
from loreloop.learn.environments.tools import Costs, Rewarded, ToolEnvironment, ToolFailure, tool
from loreloop.learn.examples import Task
from loreloop.learn.played import reader_of
from loreloop.learn.rewards.reward import Answer, Score
from loreloop.learn.settings import GrpoSettings
from loreloop.protocol.errors import BadRequest
from loreloop.text.conversation import Conversation, MadeCall, Turn
from loreloop.text.tools.tool_calls import Tool

TASK = Task(Conversation((Turn("user", "What is 12 * 34?"),)), {"answer": "408"})


async def right(answer: Answer, task: Task) -> Score:
    return Score(float(answer.text == task.item["answer"]))


def call(name: str, **arguments: object) -> MadeCall:
    return MadeCall(f"call_{name}", name, json.dumps(arguments))


def calling(*calls: MadeCall) -> Answer:
    return Answer("", calls)


def episode(environment: Environment, *answers: Answer, task: Task = TASK) -> list[Step]:
    async def go() -> list[Step]:
        await environment.reset(task)
        return [await environment.step(answer) for answer in answers]

    return asyncio.run(go())


def test_shapes_are_drawn_from_their_task_and_judged_with_certainty() -> None:
    naming, counting = shape_tasks(2, seed=3)
    named, counted = naming.item["shape"], str(counting.item["count"])
    other = next(shape for shape in SHAPES if shape != named)
    for task, text, reward, form in (
        (naming, f"A {named}.", 1.0, 1.0),
        (naming, f"A {other}.", 0.0, 1.0),
        (naming, f"A {named} or a {other}.", 0.0, 0.0),
        (naming, "I see nothing.", 0.0, 0.0),
        (counting, f"There are {counted}.", 1.0, 1.0),
        (counting, f"1{counted}", 0.0, 1.0),
        (counting, "1 2 3 4 5 6", 0.0, 0.0),
    ):
        (step,) = episode(Shapes(), Answer(text), task=task)
        assert (step.done, step.reward, dict(step.parts)) == (True, reward, {"form": form}), text
    first, again = (asyncio.run(Shapes().reset(counting)).turns[0].pictures[0].url for _ in range(2))
    assert first == again != asyncio.run(Shapes().reset(naming)).turns[0].pictures[0].url


@given(st.sampled_from(SHAPES), st.integers(1, MOST_SHAPES), st.integers(0, 1 << 30))
def test_as_many_shapes_are_seen_as_are_counted(shape: str, count: int, seed: int) -> None:
    image = Image.open(io.BytesIO(drawing(Scene(shape, "red", count, seed)))).convert("L")
    left = {(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) < 200}
    islands = 0
    while left:
        islands, edge = islands + 1, [left.pop()]
        while edge:
            x, y = edge.pop()
            near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
    assert islands == count


@pytest.mark.parametrize("change", [{"count": 7}, {"shape": "star"}, {"colour": "pink"}, {"seed": "x"}, {"ask": "why"}])
def test_a_scene_that_cannot_be_drawn_is_refused(change: dict[str, object]) -> None:
    (task,) = shape_tasks(1)
    with pytest.raises(BadRequest, match="A task of shapes has ask"):
        asyncio.run(Shapes().reset(Task(task.prompt, {**task.item, **change})))


def test_the_calculator_computes_and_the_last_answer_earns() -> None:
    calculator = Calculator(right)
    offered = asyncio.run(calculator.reset(TASK)).tools
    assert [each.name for each in offered] == ["calculate"]
    assert offered[0].parameters == {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    }
    first, last = episode(calculator, calling(call("calculate", expression="12 * 34")), Answer("408"))
    assert [(turn.role, turn.content, turn.call_id) for turn in first.turns] == [("tool", "408", "call_calculate")]
    assert (first.done, last.done, last.reward) == (False, True, 1.0)
    nothing = dict.fromkeys(("form", "economy", "failed_calls", "timed_out_calls"), 0.0)
    assert last.parts == {"outcome": 1.0, **nothing}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1 + 2 * 3", 7), ("-(2 ** 10)", -1024), ("7 // 2 % 2", 1), ("1 / 4", 0.25), (" 3", 3)],
)
def test_expressions_are_computed(expression: str, value: float) -> None:
    assert computed(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "1 +",
        "1 / 0",
        "9 ** 9 ** 9",
        "9**65",
        "(-8) ** 0.5",
        "open('x')",
        "a",
        "'a' * 9",
        "1 < 2",
        "True",
        "1e400",
        "9" * 201,
    ],
)
def test_what_is_no_expression_is_told_to_the_model(expression: str) -> None:
    with pytest.raises(ToolFailure):
        computed(expression)


@given(st.text("0123456789+-*/%(). e", max_size=60))
def test_any_expression_ends_with_a_number_or_a_failure(expression: str) -> None:
    with contextlib.suppress(ToolFailure):
        assert isinstance(computed(expression), int | float)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (call("divide"), "there is no tool divide; there are calculate"),
        (MadeCall("c", "calculate", "{"), "not a JSON object"),
        (MadeCall("c", "calculate", "[1]"), "not a JSON object"),
        (call("calculate"), "expression is missing"),
        (call("calculate", expression=1), "of the type string"),
        (call("calculate", expression="1", more=2), "no argument more"),
    ],
)
def test_a_malformed_call_is_told_and_costs(made: MadeCall, said: str) -> None:
    first, last = episode(Calculator(right), calling(made), Answer("408"))
    assert said in first.turns[0].content
    assert first.reward == pytest.approx(-0.1)
    assert last.reward == 1.0


def test_calls_beyond_the_free_ones_cost_and_their_number_is_bounded() -> None:
    class Dear(Calculator):
        costs = Costs(call=0.05, free=1, unfinished=0.5)
        most_calls = 4

    one = call("calculate", expression="1")
    steps = episode(Dear(right), calling(one), calling(one, one), calling(one))
    assert [step.reward for step in steps] == pytest.approx([0.0, -0.1, -0.05 - 0.5])
    assert [step.done for step in steps] == [False, False, True]


class Counter(ToolEnvironment):
    """What a user writes."""

    @tool
    async def add(self, by: int, note: str = "") -> str:
        """Adds to the count."""
        self.count = getattr(self, "count", 0) + by
        return f"{self.count} {note}".strip()

    @tool
    async def half(self, of: float, twice: bool = False) -> float:
        """Halves a number."""
        return of / (4 if twice else 2)

    async def outcome(self, answer: Answer) -> Score:
        """1 at ten."""
        return Score(float(self.count == 10))


def test_an_environment_of_ones_own_keeps_what_it_wants() -> None:
    steps = episode(Counter(), calling(call("add", by=4)), calling(call("add", by=6, note="now")), Answer("done"))
    assert [step.turns[0].content for step in steps[:2]] == ["4", "10 now"]
    assert steps[2].reward == 1.0
    (step,) = episode(Counter(), calling(call("half", of=3), call("add", by=True), call("half", of=1, twice=1)))
    assert [turn.content[:8] for turn in step.turns] == ["1.5", "Error: t", "Error: t"]


def shop(seed: int) -> tuple[FlakyShop, Task]:
    task = shop_tasks(1, seed)[0]
    return FlakyShop(fault_rate=0.4), task


@pytest.mark.parametrize("seed", range(8))
def test_the_shop_is_solved_by_trying_again_and_not_by_one_answer(seed: int) -> None:
    environment, task = shop(seed)
    (guess,) = episode(environment, Answer("The number is A123."), task=task)
    assert guess.reward == 0

    async def patient() -> tuple[int, Step]:
        await environment.reset(task)
        order = call("order", item=task.item["item"], count=task.item["count"])
        for tries in range(1, 16):
            step = await environment.step(calling(order))
            if not step.turns[0].content.startswith("Error"):
                return tries, await environment.step(Answer(f"It is {step.turns[0].content}."))
        raise AssertionError

    tries, last = asyncio.run(patient())
    assert last.reward == 1.0
    assert (tries, last) == asyncio.run(patient()), "an episode's luck is the task's own"


def test_faults_are_met_and_orders_are_remembered() -> None:
    environment, task = shop(3)
    environment.fault_rate = 0.0
    order = call("order", item=task.item["item"], count=task.item["count"])
    asked = calling(call("stock_of", item=task.item["item"]))
    steps = episode(environment, asked, calling(order), calling(order), Answer("A1"), task=task)
    assert steps[3].reward == 0, "ordered twice"
    many = call("order", item=task.item["item"], count=99)
    (refused,) = episode(environment, calling(many, call("stock_of", item="gold")), task=task)
    assert "cannot be ordered" in refused.turns[0].content
    assert "there is no gold" in refused.turns[1].content
    assert (refused.parts["failed_calls"], refused.parts["timed_out_calls"]) == (2, 0)
    rates = []
    for seed in range(40):
        environment, task = shop(seed)
        (step,) = episode(environment, calling(call("stock_of", item="figs")), task=task)
        rates.append("timeout" in step.turns[0].content)
        assert step.parts["timed_out_calls"] == rates[-1]
    assert 0.2 < sum(rates) / len(rates) < 0.6


def test_tools_may_be_passed_in() -> None:
    class Ran:
        def __init__(self, stdout: str, error: str | None = None) -> None:
            self.stdout, self.error = stdout, error

    async def sandbox(code: str) -> Ran:
        return Ran("x" * 9000) if code == "long" else Ran("half", "timeout") if code == "slow" else Ran("408\n")

    async def server(name: str, arguments) -> str:
        if name == "broken":
            raise ToolFailure("the server is away")
        return f"{name} got {arguments['q']}"

    search = [Tool(name, "", {"type": "object"}) for name in ("search", "broken")]
    environment = Rewarded([python_tool(sandbox), *server_tools(search, server)], right)
    assert [each.name for each in asyncio.run(environment.reset(TASK)).tools] == ["python", "search", "broken"]
    (step,) = episode(
        environment,
        calling(
            *(call("python", code=code) for code in ("print(12 * 34)", "slow", "long")),
            call("search", q="x"),
            call("broken", q="x"),
            call("python"),
        ),
    )
    told = [turn.content for turn in step.turns]
    assert told[:2] == ["408\n", "half\nError: timeout"]
    assert len(told[2]) < 4010
    assert told[3:5] == ["search got x", "Error: the server is away"]
    assert step.parts["form"] == pytest.approx(-0.1)


def test_puzzles_come_by_name_and_are_scored_by_their_package() -> None:
    pytest.importorskip("reasoning_gym")
    puzzles = Puzzles("chain_sum", n=3, seed=1, malformed=0.05)
    tasks = puzzles.tasks()
    assert [task.item["puzzle"] for task in tasks] == [0, 1, 2]
    assert "4 - 1 - 7" in tasks[0].prompt.turns[0].content

    def scored(text: str) -> Score:
        return asyncio.run(puzzles(Answer(text), tasks[0]))

    assert scored("I think so.\n<answer>-4</answer>") == Score(1.0, {"form": 1.0})
    assert scored("-4").value == 0.05
    assert scored("<answer>5</answer>").value < 0.5
    with pytest.raises(BadRequest, match="no tasks named 'chess_masters'"):
        Puzzles("chess_masters", n=1)


class Optional(ToolEnvironment):
    @tool
    async def find(self, what: str, most: int | None = None) -> str:
        """Finds."""
        return f"{what} {most}"

    async def outcome(self, answer: Answer) -> Score:
        return Score(-1.0)


def test_an_optional_parameter_has_the_type_of_what_may_be_given() -> None:
    environment = Optional()
    (offered,) = asyncio.run(environment.reset(TASK)).tools
    assert offered.parameters["properties"]["most"] == {"type": "integer"}
    assert offered.parameters["required"] == ["what"]
    (step,) = episode(environment, calling(call("find", what="it", most=3)))
    assert step.turns[0].content == "it 3"


def test_an_episode_that_calls_to_its_end_has_an_outcome() -> None:
    environment = Optional()
    environment.costs = Costs(unfinished=0.25)
    asking = calling(call("find", what="it"))
    assert not episode(environment, asking)[0].done
    step = asyncio.run(environment.cut_off(asking))
    assert (step.reward, step.parts["outcome"]) == (-1.25, -1.0)


@pytest.mark.parametrize("name", ["shop", "shapes", "puzzles:leg_counting"])
def test_what_is_looked_at_is_never_learned_from(name: str) -> None:
    made = named(
        Wanted(
            name, 256, 32, seed=5, options='{"min_animals": 1, "max_animals": 2}' if name.startswith("puz") else "{}"
        )
    )
    assert len(made.tasks) == 256
    assert made.held_out

    def asked(task: Task) -> object:
        # A picture is another question in the same words, by its own seed.
        return task.item["seed"] if name == "shapes" else task.prompt.turns[-1].content

    assert not {asked(task) for task in made.tasks} & {asked(task) for task in made.held_out}


def test_a_puzzle_with_too_few_tasks_holds_none_out() -> None:
    options = '{"min_animals": 1, "max_animals": 1, "max_instances": 1}'
    with pytest.raises(BadRequest, match="too few different tasks"):
        named(Wanted("puzzles:leg_counting", 2000, 1, options=options))


GOOD_SHOP = {"item": "figs", "count": 2}
GOOD_SHAPES = {"ask": "count", "shape": "circle", "colour": "red", "count": 3, "seed": 1}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("shop", {"item": "moons", "count": 2}, 'item is "moons"'),
        ("shop", {"item": "figs", "count": 0}, "count is 0"),
        ("shop", {"item": "figs", "count": "two"}, 'count is "two"'),
        ("shop", {"count": 2}, "item is missing"),
        ("shop", GOOD_SHOP | {"seed": "x"}, 'seed is "x"'),
        ("shapes", GOOD_SHAPES | {"colour": "pink"}, 'colour is "pink"'),
        ("shapes", {"ask": "count"}, "shape is missing"),
    ],
)
def test_a_line_without_what_its_environment_reads_is_refused(name: str, fields: dict[str, object], said: str) -> None:
    good = GOOD_SHOP if name == "shop" else GOOD_SHAPES
    asked = {"messages": [{"role": "user", "content": "?"}], "more": 1}
    lines = [json.dumps(asked | each) for each in (good, fields)]
    read = reader_of(GrpoSettings(environment=name))
    assert next(read(lines)).item["more"] == 1
    with pytest.raises(BadRequest, match=f"Line 2: {said}"):
        list(read(lines))
