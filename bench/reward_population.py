"""A population with hidden tastes, and the chat answers that it judges, for measuring reward models.

Prompts are of four kinds: facts, sums, how-tos and lists. Answers are put together as a small chat model writes them:
with or without a preamble, a hedge, an explanation and a closing, as plain text, bullets, numbered lines or JSON, with
the result in a sentence or on a line of its own, and now and then wrong. A person judges an answer by a utility of
three tastes: how far it is from as many words as the person likes, whether it ends with the line that the person is
used to, and whether the sum or the fact is right. All three are computed from what the answer *says* (the text, and
the truth that only this file knows); a reward model sees texts alone.

Held-out prompts share neither operands, nor facts, nor topics with those that are trained on, and the phrases of
held-out answers are partly others. This file knows no reward model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace
from typing import TypeVar

T = TypeVar("T")

FACTS = [
    ("the capital of Denmark", "Copenhagen"), ("the capital of Japan", "Tokyo"), ("the capital of Peru", "Lima"),
    ("the capital of Kenya", "Nairobi"), ("the capital of Norway", "Oslo"), ("the capital of Egypt", "Cairo"),
    ("the capital of Cuba", "Havana"), ("the capital of Poland", "Warsaw"), ("the capital of Chile", "Santiago"),
    ("the largest planet", "Jupiter"), ("the smallest prime number", "2"), ("the chemical symbol of gold", "Au"),
    ("the author of Hamlet", "Shakespeare"), ("the author of Faust", "Goethe"),
    ("the longest river in Africa", "Nile"), ("the highest mountain on Earth", "Everest"),
    ("the freezing point of water", "0 °C"), ("the currency of Japan", "yen"),
    ("the painter of the Mona Lisa", "Leonardo"), ("the inventor of the telephone", "Bell"),
    ("the language of Brazil", "Portuguese"), ("the largest ocean", "Pacific"), ("the capital of Spain", "Madrid"),
    ("the capital of Ghana", "Accra"), ("the capital of Ireland", "Dublin"), ("the composer of Carmen", "Bizet"),
    ("the chemical symbol of iron", "Fe"), ("the hardest natural material", "diamond"),
    ("the currency of Poland", "zloty"), ("the capital of Finland", "Helsinki"),
]  # fmt: skip
TOPICS = [
    "boil an egg", "change a bicycle tyre", "write a thank-you note", "clean a keyboard", "plant tomatoes",
    "back up a laptop", "brew green tea", "fold a shirt", "sharpen a knife", "learn a song", "pack a suitcase",
    "water a cactus", "sort photos", "bake bread", "fix a dripping tap", "paint a wall", "tune a guitar", "wash a car",
    "draw a cat", "make a budget",
]  # fmt: skip
SUBJECTS = [
    "fruits", "tools", "rivers", "board games", "spices", "birds", "musical instruments", "trees", "sports", "metals",
    "breakfasts", "sea animals", "hats", "vegetables", "languages", "insects",
]  # fmt: skip
WORDS = [
    "apple", "hammer", "Danube", "chess", "cumin", "robin", "violin", "oak", "rowing", "copper", "porridge", "whale",
    "beret", "carrot", "Welsh", "beetle", "pear", "saw", "Loire", "ludo", "ginger", "heron", "flute", "birch", "judo",
    "zinc", "waffle", "seal", "turban", "leek", "Basque", "wasp", "plum", "chisel", "Oder", "draughts", "paprika",
    "finch", "cello", "ash", "fencing", "tin", "muesli", "squid", "bonnet", "kale", "Tamil", "moth",
]  # fmt: skip
STEPS = [
    "Get everything ready on the table", "Read the label first", "Start with the largest part", "Wait a few minutes",
    "Check that nothing is loose", "Use warm water", "Go slowly at the edges", "Put the small parts in a bowl",
    "Repeat this twice", "Dry it with a cloth", "Write down what you did", "Ask somebody to hold the other end",
    "Turn it over once", "Leave it overnight", "Tidy up at the end", "Test it before you go on",
]  # fmt: skip
PREAMBLES = [
    "Sure!", "Great question!", "Of course, I'd be happy to help with that.", "Let me think about this.",
    "Thanks for asking!", "Good one.", "Absolutely, here is what I found.", "Alright, let's look at it together.",
]  # fmt: skip
HEDGES = [
    "As far as I know,", "I believe that", "If I am not mistaken,", "Most people say that", "To my knowledge,",
    "I might be wrong, but",
]  # fmt: skip
FILLERS = [
    "There are many ways to look at this, and each of them has something to say for it.",
    "People have thought about this for a long time, which is why there is so much written on it.",
    "It helps to keep in mind that context matters and that details may differ from case to case.",
    "This is one of those things that seem simple at first and become interesting on a second look.",
    "You may want to compare this with other sources before you rely on it for something important.",
    "Many textbooks treat it early on, because so much else builds upon it.",
    "In practice the answer is the same in nearly all situations that one meets.",
    "I have tried to keep this explanation as clear as I can, step by step.",
    "Some would add a remark about history here, though it changes nothing in the result.",
    "A friend of mine always used to explain it with a drawing on a napkin.",
]  # fmt: skip
CLOSINGS = [
    "I hope this helps!", "Let me know if you need more.", "Is there anything else?", "Feel free to ask again.",
    "Have a nice day!", "Happy to explain further.",
]  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what only the population knows: the true answer of facts and sums."""

    kind: str  # fact, sum, howto or list
    text: str
    truth: str | None = None


@dataclass(frozen=True)
class Written:
    """An answer, and whether what it claims is true (None: nothing to be right about)."""

    prompt: Prompt
    text: str
    right: bool | None


@dataclass(frozen=True)
class Taste:
    """Of one person: as many words as they like best, what each of three things is worth, and the line that answers
    should end with."""

    words: float
    brevity: float
    form: float
    right: float
    line: str = "Answer:"

    def utility(self, written: Written) -> float:
        """How much the person likes an answer; a difference of 1 is felt."""
        n_words = len(written.text.split())
        last = written.text.strip().rpartition("\n")[2]
        far = abs(n_words - self.words) / 20
        return (
            -self.brevity * min(far, 4.0)
            + self.form * last.startswith(self.line)
            + self.right * {True: 1.0, False: 0.0, None: 0.5}[written.right]
        )


@dataclass(frozen=True)
class Judged:
    """Two answers to one prompt, which of them is better to the person's taste, and what the person said, which is the
    other one as often as the noise has it."""

    person: str
    first: Written
    second: Written
    clean: bool  # the first one is better
    said: bool


@dataclass
class Population:
    """`n_persons` with tastes around common ones. `flip` makes them like what they did not. `noise` is the share of
    judgements that are said the wrong way round."""

    seed: int
    n_persons: int = 40
    noise: float = 0.15
    tastes: dict[str, Taste] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"population {self.seed}")
        for number in range(self.n_persons):
            self.tastes[f"person{number}"] = Taste(
                words=self.rng.uniform(4, 20),
                brevity=self.rng.uniform(0.2, 0.7),
                form=self.rng.uniform(0.5, 1.5),
                right=self.rng.uniform(0.8, 2.0),
            )

    def flip(self) -> None:
        """Everybody now likes what is far from as many words as before, and answers without the line. What is right
        stays right."""
        for name, taste in self.tastes.items():
            self.tastes[name] = replace(taste, brevity=-taste.brevity, form=-taste.form)

    def judged(self, n: int, *, held_out: bool = False) -> list[Judged]:
        """`n` pairs, each shown to a person by chance; pairs between which the person sees no difference are left
        out."""
        found: list[Judged] = []
        while len(found) < n:
            person = self.rng.choice(sorted(self.tastes))
            prompt = prompt_of(self.rng, held_out=held_out)
            first, second = (answer_of(self.rng, prompt, held_out=held_out) for _ in range(2))
            lead = self.tastes[person].utility(first) - self.tastes[person].utility(second)
            if first.text == second.text or abs(lead) < 0.1:
                continue
            said = (lead > 0) != (self.rng.random() < self.noise)
            found.append(Judged(person, first, second, lead > 0, said))
        return found


def prompt_of(rng: random.Random, *, held_out: bool = False) -> Prompt:
    """Something to ask, of the part of the material that is trained on or of the other one."""
    kind = rng.choice(("fact", "sum", "howto", "list"))
    if kind == "sum":
        # Sums of a held-out residue, so that no pair of numbers is on both sides.
        while True:
            left, right = rng.randint(10, 99), rng.randint(10, 99)
            if ((left * 7 + right * 3) % 4 == 0) == held_out:
                break
        asked = rng.choice(("What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?"))
        return Prompt("sum", asked.format(left, right), str(left + right))
    if kind == "fact":
        fact, truth = rng.choice(_side(FACTS, held_out))
        return Prompt("fact", rng.choice(("What is {}?", "Tell me {}.", "Do you know {}?")).format(fact), truth)
    if kind == "howto":
        return Prompt(
            "howto", rng.choice(("How do I {}?", "Explain how to {}.")).format(rng.choice(_side(TOPICS, held_out)))
        )
    n = rng.randint(3, 5)
    return Prompt(
        "list", rng.choice(("Name {} {}.", "Give me {} {}, please.")).format(n, rng.choice(_side(SUBJECTS, held_out)))
    )


def answer_of(rng: random.Random, prompt: Prompt, *, held_out: bool = False) -> Written:
    """One answer as a chat model might give it."""
    core, right = _core(rng, prompt, held_out)
    before = [rng.choice(_side(PREAMBLES, held_out))] if rng.random() < 0.4 else []
    n_fill = rng.choice((0, 0, 0, 1, 1, 2, 3))
    filling = rng.sample(_side(FILLERS, held_out), n_fill)
    after = [rng.choice(_side(CLOSINGS, held_out))] if rng.random() < 0.3 else []
    if rng.random() < 0.25 and prompt.kind in ("fact", "sum"):
        core = f"{rng.choice(HEDGES)} {core[0].lower()}{core[1:]}"
    split = rng.randint(0, n_fill)
    # Lines of a list stand alone; a sentence goes on where the last one ended.
    between = "\n" if "\n" in core else " "
    parts = (" ".join([*before, *filling[:split]]), core, " ".join([*filling[split:], *after]))
    text = between.join(part for part in parts if part)
    if rng.random() < 0.4:
        text += f"\n{rng.choice(('Answer:', 'Result:', 'In short:', '**Answer**', 'Answer:'))} {_short(core, prompt)}"
    return Written(prompt, text, right)


def _core(rng: random.Random, prompt: Prompt, held_out: bool) -> tuple[str, bool | None]:
    if prompt.truth is not None:
        right = rng.random() < 0.65
        said = prompt.truth if right else _wrong(rng, prompt)
        forms = ["It is {}.", "{}.", "The answer is {}.", "That would be {}.", '{{"answer": "{}"}}', "**{}**."]
        if prompt.kind == "sum":
            left, other = re.findall(r"\d+", prompt.text)
            forms += [f"{left} + {other} = {{}}.", f"{left} plus {other} makes {{}}."]
        return rng.choice(forms).format(said), right
    if prompt.kind == "howto":
        steps = rng.sample(STEPS, rng.choice((1, 2, 3, 4, 6)))
    else:
        n = int(re.search(r"\d", prompt.text)[0])  # type: ignore[index]
        steps = rng.sample(WORDS, n)
    style = rng.choice(("plain", "plain", "bullets", "numbers"))
    if style == "plain":
        return (". ".join(steps) if prompt.kind == "howto" else ", ".join(steps)) + ".", None
    marks = ["-"] * len(steps) if style == "bullets" else [f"{number}." for number in range(1, len(steps) + 1)]
    return "\n".join(f"{mark} {step}" for mark, step in zip(marks, steps, strict=True)), None


def _wrong(rng: random.Random, prompt: Prompt) -> str:
    truth = prompt.truth or ""
    if prompt.kind == "sum":
        return str(int(truth) + rng.choice((-10, -2, -1, 1, 2, 10)))
    return rng.choice([other for _, other in FACTS if other != truth])


def _short(core: str, prompt: Prompt) -> str:
    found = re.findall(r"\d+", core) if prompt.kind == "sum" else re.findall(r"[A-Za-z°]+", core)
    return found[-1] if found else "done"


def _side(things: list[T], held_out: bool) -> list[T]:
    """The last quarter where it is held out, else the others."""
    border = len(things) - max(3, len(things) // 4)
    return things[border:] if held_out else things[:border]
