"""Reads LoCoMo, BEAM and LongMemEval from files that the user has; none of them comes with this project.

The formats are those of the published files. Labels of LoCoMo can be cleaned by a list of known faults.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from loreloop.memory.evaluation.cases import Conversation, Question
from loreloop.memory.turns import Turn
from loreloop.protocol.errors import BadRequest

LOCOMO_ID = re.compile(r"D\d+:\d+")
LOCOMO_KINDS = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
BEAM_MARKER = re.compile(r"\s*->->[\d ,]*$")  # the generator's own numbering behind a message
Format = Literal["locomo", "beam", "longmemeval"]


class Fault(msgspec.Struct):
    """One entry of a list of LoCoMo's wrong labels."""

    sample_id: str
    qa_index: int
    question: str = ""
    correct_evidence: list[str] = []
    correct_answer: str | int = ""


class LocomoTurn(msgspec.Struct):
    """One utterance of LoCoMo; `dia_id` such as "D3:7" is what labels cite, the session before the colon."""

    speaker: str
    dia_id: str
    text: str


class LocomoQuestion(msgspec.Struct):
    """A question of LoCoMo, whose `category` is a key of LOCOMO_KINDS and whose `evidence` are ids of turns."""

    question: str
    category: int
    answer: str | int | float = ""
    evidence: list[str] = []


class LocomoSample(msgspec.Struct):
    """One conversation of LoCoMo: sessions and their dates by key, and the questions about them."""

    sample_id: str
    conversation: dict[str, str | list[LocomoTurn]]
    qa: list[LocomoQuestion]


class BeamMessage(msgspec.Struct):
    """One message of a BEAM chat; its `id` is what labels cite."""

    id: int
    role: str
    content: str


class BeamQuestion(msgspec.Struct):
    """A question of BEAM. By its category the answer stands in one of four fields."""

    question: str
    answer: str = ""
    ideal_answer: str = ""
    ideal_response: str = ""
    ideal_summary: str = ""
    source_chat_ids: object = None  # a list of ids, or such lists by name


class BeamChat(msgspec.Struct):
    """One chat of BEAM with its questions by category."""

    chat_id: int | str
    messages: list[BeamMessage]
    questions: dict[str, list[BeamQuestion]]


class LongTurn(msgspec.Struct):
    """One message of LongMemEval; `has_answer` marks it as evidence."""

    role: str
    content: str
    has_answer: bool = False


class LongQuestion(msgspec.Struct):
    """A question of LongMemEval with the sessions of its own history and their dates."""

    question_id: str
    question_type: str
    question: str
    answer: str | int | float
    haystack_sessions: list[list[LongTurn]]
    haystack_session_ids: list[str] = []
    haystack_dates: list[str] = []
    answer_session_ids: list[str] = []


def load(path: Path, format: Format, faults: Path | None = None) -> list[Conversation]:
    """Raises BadRequest for a file that is not there or not of the format."""
    wrong = f"{path} was to be read as {format}"
    try:
        data = path.read_bytes()
        if format == "locomo":
            listed = msgspec.json.decode(faults.read_bytes(), type=list[Fault]) if faults is not None else []
            return [locomo(sample, listed) for sample in msgspec.json.decode(data, type=list[LocomoSample])]
        if format == "beam":
            return [beam(chat) for chat in msgspec.json.decode(data, type=list[BeamChat])]
        return [longmemeval(one) for one in msgspec.json.decode(data, type=list[LongQuestion])]
    except OSError as error:
        raise BadRequest(f"{wrong}, and cannot be opened: {error.strerror} ({error.filename}).") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadRequest(f"{wrong}, and does not have that form: {error}. Is it another of the formats?") from error


def locomo(sample: LocomoSample, faults: list[Fault]) -> Conversation:
    """A sample as a conversation, with its turns numbered over all sessions. A fault's evidence and answer replace the
    label's where it has any; ids that name no turn are left out. Raises BadRequest for a fault of another question."""
    turns: list[Turn] = []
    numbers: dict[str, int] = {}
    # Sessions and their dates are keys beside others, so there are never more sessions than keys.
    for session in range(1, len(sample.conversation) + 1):
        utterances = sample.conversation.get(f"session_{session}", [])
        time = when(str(sample.conversation.get(f"session_{session}_date_time", "")))
        last = turns[-1].time if turns else None
        for turn in utterances if isinstance(utterances, list) else []:
            numbers[turn.dia_id] = len(turns)
            turns.append(Turn("user", turn.text, turn.speaker, later(time, last)))
    known = {fault.qa_index: fault for fault in faults if fault.sample_id == sample.sample_id}
    questions = []
    for index, label in enumerate(sample.qa):
        fault = known.get(index)
        # A list for another version of the file would correct labels that are right.
        if fault is not None and fault.question not in ("", label.question):
            raise BadRequest(
                f"The list of faults names question {index} of {sample.sample_id} as {fault.question[:80]!r}, and the "
                f"file has {label.question[:80]!r} there; is it of another version?"
            )
        cited = label.evidence if fault is None else fault.correct_evidence or label.evidence
        answer = label.answer if fault is None else fault.correct_answer or label.answer
        ids = LOCOMO_ID.findall(" ".join(cited))
        # A label may name a turn twice, or one that does not exist; each turn counts once.
        evidence = tuple(dict.fromkeys(numbers[id] for id in ids if id in numbers))
        kind = LOCOMO_KINDS.get(label.category, str(label.category))
        questions.append(Question(kind, label.question, str(answer), evidence))
    return Conversation(sample.sample_id, tuple(turns), tuple(questions))


def when(text: str) -> float | None:
    """Seconds of a date such as "1:56 pm on 8 May, 2023", or None for another form."""
    try:
        return datetime.strptime(text, "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def later(time: float | None, last: float | None) -> float | None:
    """Sessions are told in order; a date that goes back is a slip of the data."""
    return time if time is None or last is None else max(time, last)


def beam(chat: BeamChat) -> Conversation:
    """A chat as a conversation, without the generator's marks behind its messages; ids that name no message are left
    out."""
    numbers = {message.id: number for number, message in enumerate(chat.messages)}
    questions = []
    for kind, labels in chat.questions.items():
        for one in labels:
            answer = one.answer or one.ideal_answer or one.ideal_response or one.ideal_summary
            cited = [numbers[id] for id in numbers_in(one.source_chat_ids) if id in numbers]
            questions.append(Question(kind, one.question, answer, tuple(dict.fromkeys(cited))))
    turns = tuple(Turn(message.role, BEAM_MARKER.sub("", message.content)) for message in chat.messages)
    return Conversation(f"chat-{chat.chat_id}", turns, tuple(questions))


def numbers_in(nested: object) -> list[int]:
    """All numbers in lists and objects of any depth."""
    if isinstance(nested, dict):
        return [number for inner in nested.values() for number in numbers_in(inner)]
    if isinstance(nested, list):
        return [number for inner in nested for number in numbers_in(inner)]
    return [nested] if isinstance(nested, int) else []


def longmemeval(one: LongQuestion) -> Conversation:
    """A question with its own history. Its evidence are the turns that are marked, or, where none is, all of the
    sessions that are named; one that the history does not answer has "_abs" behind its id, and no evidence."""
    turns: list[Turn] = []
    marked: list[int] = []
    named: list[int] = []
    for number, session in enumerate(one.haystack_sessions):
        date = one.haystack_dates[number] if number < len(one.haystack_dates) else ""
        time = later(day_of(date), turns[-1].time if turns else None)
        first = len(turns)
        turns += [Turn(turn.role, turn.content, time=time) for turn in session]
        marked += [first + place for place, turn in enumerate(session) if turn.has_answer]
        if one.haystack_session_ids[number : number + 1] and one.haystack_session_ids[number] in one.answer_session_ids:
            named += range(first, len(turns))
    # What the history does not answer has no evidence that a memory could keep.
    absent = one.question_id.endswith("_abs")
    kind = "abstention" if absent else one.question_type
    evidence = () if absent else tuple(marked or named)
    return Conversation(one.question_id, tuple(turns), (Question(kind, one.question, str(one.answer), evidence),))


def day_of(text: str) -> float | None:
    """Seconds of a date such as "2023/05/30 (Tue) 23:40", or None for another form."""
    try:
        return datetime.strptime(text, "%Y/%m/%d (%a) %H:%M").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
