"""General prompts that are learned beside corrections, with the champion's own answers, so that what nobody has
corrected stays as it was.

A few corrections, read again and again, move a small model everywhere. Rehearsal of what it said before holds it in
place (McCloskey and Cohen 1989 on why, Robins 1995 on rehearsal by a network's own answers). Knows no stage of a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from loreloop.learn.examples import Task
from loreloop.learn.files import tasks
from loreloop.learn.loop.answering import Room
from loreloop.learn.loop.cycle_files import GENERAL, GENERAL_KEYS
from loreloop.learn.loop.rehearsing import line_of
from loreloop.learn.loop.state import written
from loreloop.learn.loop.task_files import key_of_task

ANSWER_TOKENS, N_LIKELY = 32, 64
# Questions and small tasks of as many kinds as there are lines; a loop over something else names a file of its own.
PROMPTS = """\
Hello!
How are you?
Who are you?
Thank you very much.
Can you help me with something?
Tell me a joke.
Write one sentence about the sea.
Write a short poem about rain.
Give me a tip for sleeping well.
What should I eat for breakfast?
What does a doctor do?
What is a noun?
What is photosynthesis?
What is a volcano?
What is gravity?
Explain in one sentence what a computer is.
What is the difference between a lake and a river?
Is 17 a prime number?
What is 12 plus 7?
What is half of ten?
Which number comes after 99?
How many hours are in a day?
How many wheels does a bicycle have?
What is the plural of child?
Give another word for happy.
Give me a word that rhymes with house.
Spell the word necessary.
Translate "good morning" into French.
Say hello in Spanish.
Put these words in order of size: ant, horse, dog.
Which word does not fit: apple, pear, hammer?
What comes after Monday?
Which season is the coldest?
Name a yellow fruit.
What colour is a banana?
What do cows eat?
Where do penguins live?
Which planet is the largest?
Which metal is liquid at room temperature?
What is the chemical symbol of gold?
What is the boiling point of water?
What is the tallest mountain in the world?
What is the capital of Canada?
Who painted the Mona Lisa?
Who invented the telephone?
When did the Second World War end?
How long is a marathon?
What is bread made of?
""".splitlines()


def built_in() -> tuple[Task, ...]:
    """The prompts that come with this program, as tasks."""
    lines = [{"messages": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    return tuple(tasks(map(msgspec.json.encode, lines)))


async def lay_out_general(folder: Path, room: Room, champion: str, prompts: Sequence[Task]) -> None:
    """Writes a cycle's general prompts beside its other lines, with how the champion answers them, unless they are
    there. An answer need not end: learned is at each of its places what the champion might have said there."""
    if (folder / GENERAL).exists():
        return
    answers = await room.likely_answers(champion, prompts, ANSWER_TOKENS, N_LIKELY) if prompts else []
    lines = [
        msgspec.json.encode(line_of(task, said.tokens, said.likely))
        for task, said in zip(prompts, answers, strict=True)
        if said.tokens
    ]
    # What is learned from is noted before it is.
    written(folder / GENERAL_KEYS, msgspec.json.encode([key_of_task(task) for task in prompts]))
    written(folder / GENERAL, b"\n".join(lines))
