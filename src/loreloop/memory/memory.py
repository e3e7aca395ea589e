"""The memory of one conversation: append turns, and its text never exceeds the budget.

An append that fits changes nothing that stands. One that does not starts an edit: chunks are masked, tokens allocated
and the chunks refilled, down to the low watermark, so that the next edit is some turns away. Every step works on
a state that is put in place whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from loreloop.memory.allocate import Demand, allocate
from loreloop.memory.condense import CountTokens, tokens_beyond
from loreloop.memory.importance import Importance
from loreloop.memory.mask import Chunk, masked, steps_of, threshold_for
from loreloop.memory.open_questions import OPEN, left_open
from loreloop.memory.refill import NOWHERE, Place, Refill
from loreloop.memory.state import Costs, Form, MemoryState, Segment, passage, text_of
from loreloop.memory.supersede import outdated
from loreloop.memory.turns import Turn, check_turn, head_of
from loreloop.memory.words import content_of
from loreloop.protocol.errors import BadRequest, NotFound

SPENT_PER_APPENDED, SPENT_PER_BUDGET = 4, 2  # model tokens: a memory's total stays within these times its sizes
NEIGHBOURS = 2  # segments on each side that a refill is shown


class Settings(msgspec.Struct, frozen=True):
    """`low` is the share of the budget that an edit leaves. Of what the pins leave free, `window` is the share that the
    newest turns keep untouched, `largest` what one new turn may take. `minimum` is in tokens."""

    low: float = 0.97
    window: float = 0.03
    largest: float = 0.12
    minimum: int = 16
    seed: int = 0
    temperature: float = 0.0


@dataclass
class Parts:
    """What a memory works with: how tokens are counted, how worth is judged, how chunks are refilled."""

    count: CountTokens
    importance: Importance
    refill: Refill


@dataclass(frozen=True)
class Forgotten:
    """What a `forget` removed: the segments, and all turns that had a part in them."""

    segments: tuple[Segment, ...]
    turns: tuple[int, ...]


class Memory:
    """A state with the parts that work on it. Raises BadRequest for a budget that the pinned segments do not fit
    into."""

    def __init__(self, state: MemoryState, parts: Parts, settings: Settings | None = None) -> None:
        check_budget(state.budget, state.segments)
        self.state, self.parts, self.settings = state, parts, settings or Settings()
        self.small: dict[int, Segment] = {}  # condensed forms of the segments that stand
        self.spent = 0  # model tokens of the append that is under way

    @property
    def text(self) -> str:
        """The memory as it is put before a model, at most `budget` tokens of it."""
        return text_of(self.state)

    def append(self, turn: Turn, pinned: bool = False) -> None:
        """Raises BadRequest, with the memory unchanged, for a turn out of order or one that cannot be pinned."""
        state = self.state
        check_turn(turn, state.last_time)
        self.spent = 0
        # Whatever can fail comes before the state is replaced, which is how an error leaves the memory unchanged.
        new = self._segment(turn, pinned)
        segments = state.segments if new is None else self._with_new(new)
        edited = self._edit(segments, state.budget)
        costs = state.costs
        self.state = msgspec.structs.replace(
            state,
            segments=edited,
            n_turns=state.n_turns + 1,
            # Ids count on where a turn left no segment too, which keeps them in step with the turns.
            next_id=state.next_id + 1,
            asked=turn.text.rstrip().endswith("?"),
            last_time=turn.time if turn.time is not None else state.last_time,
            costs=Costs(
                appended=costs.appended + (0 if new is None else new.tokens),
                reprefilled=costs.reprefilled + behind_first_change(state.segments, edited),
                model=costs.model + self.spent,
                edits=costs.edits + (edited is not segments),
            ),
        )

    def resize(self, budget: int) -> None:
        """Goes on with another budget. A smaller one is edited down to as an append would; with a larger one nothing
        changes that stands. Raises BadRequest, with the memory unchanged, for a budget that the pins do not fit into.
        """
        state = self.state
        check_budget(budget, state.segments)
        self.spent = 0
        edited = self._edit(state.segments, budget)
        costs = msgspec.structs.replace(
            state.costs,
            reprefilled=state.costs.reprefilled + behind_first_change(state.segments, edited),
            model=state.costs.model + self.spent,
            edits=state.costs.edits + (edited is not state.segments),
        )
        self.state = msgspec.structs.replace(state, budget=budget, segments=edited, costs=costs)

    def forget(self, *, turn: int | None = None, pattern: str = "") -> Forgotten:
        """Takes out every segment that was made from a turn, or from the turns of any segment in which all content
        words of `pattern` stand, pinned or not. Function words of the pattern do not count, since a condensed segment
        has lost its own.

        Raises BadRequest for a call that names neither or both, NotFound for a turn that never was.
        """
        # An empty pattern would match every segment.
        if (turn is None) == (not pattern):
            raise BadRequest("Say what to forget, either `turn`, a number, or `pattern`, some words.")
        if turn is not None and not 0 <= turn < self.state.n_turns:
            raise NotFound(
                f"Turn {turn} was to be forgotten, and the memory has seen turns 0 to {self.state.n_turns - 1}."
            )
        turns = {turn} if turn is not None else self._turns_with(content_of(pattern))
        # A segment that was made from a turn goes whole: its text may be that turn's in other words.
        gone = tuple(segment for segment in self.state.segments if turns.intersection(segment.turns))
        left = tuple(segment for segment in self.state.segments if not turns.intersection(segment.turns))
        self.small = {id: small for id, small in self.small.items() if not turns.intersection(small.turns)}
        costs = self.state.costs
        reprefilled = costs.reprefilled + behind_first_change(self.state.segments, left)
        costs = msgspec.structs.replace(costs, reprefilled=reprefilled, edits=costs.edits + bool(gone))
        self.state = msgspec.structs.replace(self.state, segments=left, costs=costs)
        return Forgotten(gone, tuple(sorted({n for segment in gone for n in segment.turns})))

    def _turns_with(self, wanted: frozenset[str]) -> set[int]:
        if not wanted:
            raise BadRequest("The pattern to forget holds only function words; name what it is about.")
        matching = [s for s in self.state.segments if wanted <= content_of(s.text)]
        return {turn for segment in matching for turn in segment.turns}

    def _with_new(self, new: Segment) -> tuple[Segment, ...]:
        """The segments and the new one, without the sentences that it makes out of date; a question that it puts off is
        worth more from now on."""
        left = outdated(self.state.segments, new)
        kept = list(self.state.segments)
        for position, text in left.items():
            kept[position] = self._shortened(kept[position], text)
        question = left_open(self.state.segments, new)
        if question is not None:
            kept[question] = msgspec.structs.replace(kept[question], worth=OPEN * kept[question].worth)
            # Its condensed form has the old worth.
            self.small.pop(kept[question].id, None)
        return (*(segment for segment in kept if segment.text), new)

    def _shortened(self, segment: Segment, text: str) -> Segment:
        tokens = self.parts.count(passage(segment.head, text))
        form: Form = "excerpt"
        cut = msgspec.structs.replace(segment, text=text, tokens=tokens, form=form, rewrites=segment.rewrites + 1)
        # What is left of a passage is judged anew, since the words that made its worth may be those that went.
        return self._judged(cut, ()) if text else cut

    def _judged(self, segment: Segment, before: Sequence[Segment]) -> Segment:
        """An estimator may take half of what is allowed: the rest is for refills."""
        worth = self.parts.importance.worth(segment, before, self._allowance // 2)
        self.spent += self.parts.importance.tokens_spent
        return msgspec.structs.replace(segment, worth=worth)

    @property
    def _allowance(self) -> int:
        """Model tokens that may be spent now: the total stays within a bound that grows with what was appended."""
        costs = self.state.costs
        bound = SPENT_PER_APPENDED * costs.appended + SPENT_PER_BUDGET * self.state.budget
        return max(0, bound - costs.model - self.spent)

    def _segment(self, turn: Turn, pinned: bool) -> Segment | None:
        """The new turn as a segment that fits; None for a turn without text or of which nothing fits."""
        if not turn.text.strip():
            return None
        state = self.state
        head, text = head_of(turn), turn.text.strip()
        # Pins are never shortened, so all shares are of what they leave.
        free = state.budget - pinned_tokens(state.segments)
        # A pasted document must not push everything else out of the memory.
        most = free if pinned else int(free * self.settings.largest)
        tokens = tokens_beyond(passage(head, text), most, self.parts.count)
        segment = Segment(
            id=state.next_id,
            head=head,
            text=text,
            tokens=tokens,
            turns=(state.n_turns,),
            role=turn.role,
            pinned=pinned,
            answers=state.asked,
        )
        if pinned:
            if tokens > free:
                raise BadRequest(
                    f"A pinned turn of {tokens} tokens was appended, and the budget of {state.budget} has {free} left "
                    "beside what is pinned. Raise the budget, or pin less."
                )
            return segment
        # What an edit needs of a turn is worked out when the turn comes: no single append has to do it for many.
        segment = self._judged(segment, state.segments)
        self._condensed(segment)
        return segment if tokens <= most else self._refill(segment, most)

    def _edit(self, segments: tuple[Segment, ...], budget: int) -> tuple[Segment, ...]:
        """The segments themselves if they fit, else what an edit leaves of them."""
        total = sum(segment.tokens for segment in segments)
        if total <= budget:
            return segments
        # An edit costs a new prefill, so it frees more than the new turn needs.
        target = int(budget * self.settings.low)
        open_at = self._open(segments, budget)
        chunks = [self._chunk(segments[n]) for n in open_at]
        settings = self.settings
        steps = [steps_of(chunk, settings.seed, settings.temperature) for chunk in chunks]
        # Pins and the window may be over the target by themselves; then everything else goes.
        mask = masked(steps, threshold_for(steps, chunks, total - target))
        opened = [n for n, chosen in zip(open_at, mask, strict=True) if chosen]
        demands = [
            Demand(step.drop, chunk.tokens, chunk.condensed)
            for step, chunk, chosen in zip(steps, chunks, mask, strict=True)
            if chosen
        ]
        free = target - (total - sum(demand.tokens for demand in demands))
        budgets = allocate(demands, max(free, 0), settings.minimum)
        refilled = {
            n: self._refill(segments[n], share, place_of(segments, n)) for n, share in zip(opened, budgets, strict=True)
        }
        result = [refilled.get(n, segment) for n, segment in enumerate(segments)]
        after = tuple(segment for segment in result if segment is not None)
        # Condensed forms of segments that were changed or dropped are of no use any more.
        stands = {segment.id for segment in after if segment.form == "whole"}
        self.small = {number: small for number, small in self.small.items() if number in stands}
        return after

    def _open(self, segments: Sequence[Segment], budget: int) -> list[int]:
        """Positions that may be masked: neither pins nor the working window. The newest turn belongs to that unless it
        came under a larger budget and is over its share of this one."""
        free = budget - pinned_tokens(segments)
        # The newest turns stay untouched, since a reply most likely refers to them.
        left = free * self.settings.window
        closed = {n for n, segment in enumerate(segments) if segment.pinned}
        newest = len(segments) - 1
        for n in range(newest, -1, -1):
            left -= segments[n].tokens
            if left < 0 and not (n == newest and segments[n].tokens <= int(free * self.settings.largest)):
                break
            closed.add(n)
        return [n for n in range(len(segments)) if n not in closed]

    def _chunk(self, segment: Segment) -> Chunk:
        return Chunk(segment.id, segment.worth, segment.tokens, self._condensed(segment).tokens)

    def _condensed(self, segment: Segment) -> Segment:
        """The condensed form, made once for a segment that is still whole."""
        if segment.form != "whole":
            return segment
        if segment.id not in self.small:
            self.small[segment.id] = self.parts.refill.condensed(segment)
        return self.small[segment.id]

    def _refill(self, segment: Segment, budget: int, neighbours: Place = NOWHERE) -> Segment | None:
        """The chunk within its budget. An excerpt holds less than its chunk did, and is worth less by its tokens."""
        if budget == 0:
            return None
        small = self._condensed(segment)
        place = replace(neighbours, small=small, allowance=self._allowance)
        made = self.parts.refill.refill(segment, budget, place)
        self.spent += self.parts.refill.tokens_spent
        # A condensed or written chunk says what it said before and keeps its worth; an excerpt does not.
        if made is None or made.form != "excerpt" or made is segment:
            return made
        return msgspec.structs.replace(made, worth=made.worth * made.tokens / small.tokens / 2)


def pinned_tokens(segments: Sequence[Segment]) -> int:
    """Tokens of the segments that no edit may touch."""
    return sum(segment.tokens for segment in segments if segment.pinned)


def check_budget(budget: int, segments: Sequence[Segment]) -> None:
    """Raises BadRequest for a budget below 1 token, or below what is pinned."""
    pinned = pinned_tokens(segments)
    if budget < max(1, pinned):
        raise BadRequest(
            f"A memory's budget is 1 token or more, and no less than what is pinned in it, {pinned}; {budget} is not."
        )


def place_of(segments: Sequence[Segment], position: int) -> Place:
    """A segment's neighbours as a refill sees them."""
    before = segments[max(0, position - NEIGHBOURS) : position]
    after = segments[position + 1 : position + 1 + NEIGHBOURS]
    turns = tuple(turn for segment in (*before, *after) for turn in segment.turns)
    texts = ["".join(passage(segment.head, segment.text) for segment in side) for side in (before, after)]
    return Place(texts[0], texts[1], turns)


def behind_first_change(before: Sequence[Segment], after: Sequence[Segment]) -> int:
    """Tokens that stood in the memory before and stand behind its first change: their cached keys are lost."""
    same = 0
    while same < min(len(before), len(after)) and before[same] is after[same]:
        same += 1
    if same == len(before):
        return 0
    # New segments are left out: they must be computed in any case.
    old = {segment.id for segment in before}
    return sum(segment.tokens for segment in after[same:] if segment.id in old)
