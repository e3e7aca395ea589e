"""Conversations of our own, made from a seed: facts that change and go, needles, distractors, consequences.

Most turns are small talk, some of it in the first person, some with names and numbers of other people. The facts are
the speaker's own. Nothing here comes from a data set.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from loreloop.memory.evaluation.cases import Conversation, Question
from loreloop.memory.turns import Turn

SUBJECTS = (
    *("locker code", "gate code", "bike lock number", "library card number", "insurance number", "parcel box code"),
    *("dentist", "landlord", "physiotherapist", "mentor", "neighbour", "tax adviser", "piano teacher", "mechanic"),
    *("gym", "allotment", "climbing hall", "choir", "sailing club", "night school", "vet", "book club", "bakery"),
)
FIRST = (
    "Astrid",
    "Bjarne",
    "Carmen",
    "Dorthe",
    "Emre",
    "Farida",
    "Goran",
    "Hanneke",
    "Imre",
    "Jolanta",
    "Kofi",
    "Linnea",
)
LAST = ("Aldana", "Brekke", "Castelo", "Dvorak", "Engstrom", "Farkas", "Grimaldi", "Hovland", "Iversen", "Jankowski")
PLACES = (
    "Nordhavn",
    "Lindworm Street",
    "Kestrel Square",
    "Old Mill Lane",
    "Vesterbro",
    "Harlan Quay",
    "Torvet",
    "Almond Row",
)
FOODS = ("rye bread", "green tea", "lentil soup", "oat milk", "smoked fish", "plum cake", "black coffee", "barley stew")
THINGS = ("the rain", "the buses", "the new film", "cooking", "the garden", "the match", "that podcast", "the stairs")
MOODS = ("tiring", "fine", "a bit odd", "lovely", "slow", "noisy", "calm", "surprising")
ASIDES = ("Anyway.", "That is how it goes.", "What can one do.", "So it is.", "We will see.", "Fair enough.")


@dataclass
class Script:
    """Turns and questions as they are made."""

    draw: random.Random
    turns: list[Turn] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def say(self, text: str, role: str = "user") -> int:
        """Adds a turn and gives its number, which a question can cite as evidence."""
        self.turns.append(Turn(role, text))
        return len(self.turns) - 1

    def chat(self, turns: int) -> None:
        """Adds so many turns of small talk, the user and the assistant in turn."""
        for _ in range(turns):
            role = "user" if len(self.turns) % 2 == 0 else "assistant"
            self.say(small_talk(self.draw, role), role)

    def made(self, name: str) -> Conversation:
        """What was gathered, as a frozen conversation of this name."""
        return Conversation(name, tuple(self.turns), tuple(self.questions))


def small_talk(draw: random.Random, role: str) -> str:
    """A line that states no fact of the speaker's own. Some of the user's name other people and numbers, so that names
    alone do not give a fact away."""
    thing, mood = draw.choice(THINGS), draw.choice(MOODS)
    if role == "assistant":
        return draw.choice(
            (
                f"That sounds {mood}. People often say so of {thing}. Would you like to talk about it some more?",
                f"I see what you mean about {thing}. It can be {mood}, and many find that it helps to take a walk.",
                f"Thank you for telling me. How has {thing} been otherwise?",
            )
        )
    return draw.choice(
        (
            f"I find {thing} {mood} today. {draw.choice(ASIDES)}",
            f"So how about {thing}? It is {mood}, isn't it?",
            f"Well, {thing} again, {mood} as ever. {draw.choice(ASIDES)}",
            f"{person(draw)} sold {draw.randrange(20, 900)} seats, they say. {thing} was {mood}.",
            f"You know, I think that {thing} could be less {mood}.",
        )
    )


def person(draw: random.Random) -> str:
    """A drawn first and last name."""
    return f"{draw.choice(FIRST)} {draw.choice(LAST)}"


def value_of(draw: random.Random, subject: str) -> str:
    """A drawn value of the subject's kind: four digits for codes and numbers, a person, or a place with a house
    number."""
    if subject.endswith(("code", "number")):
        return str(draw.randrange(1000, 9999))
    if subject in SUBJECTS[6:14]:
        return person(draw)
    return f"{draw.choice(PLACES)} {draw.randrange(2, 99)}"


def fact(subject: str, value: str, draw: random.Random) -> str:
    """A sentence that states the fact for the first time, in one of three wordings."""
    return draw.choice(
        (f"My {subject} is {value}.", f"By the way, my {subject} is {value}.", f"Note that my {subject} is {value}.")
    )


def change(subject: str, value: str, draw: random.Random) -> str:
    """A sentence that says that the fact has this new value, in one of three wordings."""
    return draw.choice(
        (
            f"My {subject} is now {value}.",
            f"My {subject} has changed, it is {value}.",
            f"My {subject} changed to {value}.",
        )
    )


def needles(seed: int, turns: int, n: int = 20) -> Conversation:
    """`n` facts at even depths of a conversation of so many turns, each said once."""
    script = Script(random.Random(f"needles {seed} {turns}"))
    for subject in script.draw.sample(SUBJECTS, n):
        script.chat(turns // n - 1)
        value = value_of(script.draw, subject)
        turn = script.say(fact(subject, value, script.draw))
        script.questions.append(Question("needle", f"What is my {subject}?", value, (turn,)))
    script.chat(turns - len(script.turns))
    return script.made(f"needles-{turns}-{seed}")


def stream(seed: int, turns: int = 1000) -> Conversation:
    """Facts of which some are replaced once or more, some are taken back, some stand; preferences drift likewise; some
    questions are about what was never said."""
    draw = random.Random(f"stream {seed}")
    script = Script(draw)
    subjects = draw.sample(SUBJECTS, 20)
    events = [(subject, step) for subject in subjects[:16] for step in range(1 + (subjects.index(subject) % 4))]
    events += [("breakfast", step) for step in range(3)]
    # Changes of one subject must lie among those of others, as in a real conversation.
    draw.shuffle(events)
    values_of: dict[str, list[str]] = {}
    latest: dict[str, int] = {}
    for subject, _ in events:
        script.chat(turns // len(events) - 1)
        before = values_of.setdefault(subject, [])
        value = another(draw, subject, before)
        latest[subject] = script.say(
            preference(value, bool(before)) if subject == "breakfast" else statement(subject, value, before, draw)
        )
        before.append(value)
    taken_back = [subject for subject in subjects[:16] if len(values_of[subject]) == 1][:2]
    for subject in taken_back:
        script.say(f"Please forget my {subject}.")
        script.questions.append(
            Question("taken back", f"What is my {subject}?", "", (), with_subject(subject, values_of[subject]))
        )
    for subject, values in values_of.items():
        if subject not in taken_back:
            kind = "preference" if subject == "breakfast" else "updated" if len(values) > 1 else "standing"
            script.questions.append(
                Question(kind, f"My {subject}?", values[-1], (latest[subject],), with_subject(subject, values[:-1]))
            )
    for subject in subjects[16:]:
        script.questions.append(Question("never said", f"What is my {subject}?", "", (), (subject,)))
    # Small talk at the end, so that the last fact does not stand only because it is in the window of newest turns.
    script.chat(20)
    return script.made(f"stream-{seed}")


def with_subject(subject: str, values: list[str]) -> tuple[str, ...]:
    """As they would stand in one passage; the values alone may well be other people's."""
    return tuple(f"{subject} {value}" for value in values)


def another(draw: random.Random, subject: str, before: list[str]) -> str:
    """A drawn value that the subject has not had before."""
    while True:
        value = draw.choice(FOODS) if subject == "breakfast" else value_of(draw, subject)
        # A value that comes back would be outdated and right at once.
        if value not in before:
            return value


def statement(subject: str, value: str, before: list[str], draw: random.Random) -> str:
    """The sentence for the value: a change where the subject has had others before, else a first statement."""
    return change(subject, value, draw) if before else fact(subject, value, draw)


def preference(value: str, changed: bool) -> str:
    """The sentence that states a preference for breakfast; `changed` where another was stated before."""
    return f"For my breakfast I now prefer {value}." if changed else f"For my breakfast I prefer {value}."


def consequences(seed: int, turns: int = 600) -> Conversation:
    """Facts that follow from one another (the tram to the office in a town), of which the first changes; and questions
    that the assistant leaves open."""
    script = Script(random.Random(f"consequences {seed}"))
    draw = script.draw
    old, new = draw.sample(PLACES, 2)
    line, thing = draw.randrange(10, 99), draw.choice(THINGS)
    script.chat(turns // 4)
    number = draw.randrange(2, 99)
    script.say(f"My office is at {old} {number}.")
    script.say(f"Because my office is there I take tram {line} to {old}.")
    script.chat(turns // 4)
    question = script.say(f"Which form do I need for my claim {draw.randrange(1000, 9999)} about {thing}?")
    script.say("I do not know that yet; I will come back to it.", "assistant")
    script.chat(turns // 4)
    move = script.say(f"My office is now at {new} {draw.randrange(2, 99)}.")
    script.chat(turns // 4)
    script.questions.append(Question("open question", "What did I ask?", "", (question,)))
    script.questions.append(Question("premise", "Where is my office?", new, (move,), (f"office {old} {number}",)))
    script.questions.append(Question("cascade", "Which tram do I take?", "", (), (f"tram {line}",)))
    return script.made(f"consequences-{seed}")
