"""The feeds behind a canary, read on from where the last look ended: what was read before is held, without its words.

Knows nothing of what is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from loreloop.learn.loop.canary import EpisodeKey, episode_of
from loreloop.learn.loop.collecting import person_of
from loreloop.learn.loop.server import Feeds
from loreloop.learn.loop.state import State
from loreloop.protocol.episodes import Turn
from loreloop.protocol.feedback import EDIT, Feedback


@dataclass
class WatchedFeeds:
    """Turns and statements since a cycle has collected, as far as this process has read them. Of the turns before that
    only `begun` is held: the episodes that they are of."""

    cycle: int = -1
    deleted: frozenset[str] = frozenset()
    begun: set[EpisodeKey] = field(default_factory=set)
    turns: dict[str, Turn] = field(default_factory=dict)
    statements: list[Feedback] = field(default_factory=list)
    turns_read: int = 0
    statements_read: int = 0

    def read_on(self, server: Feeds, state: State) -> None:
        """Reads what is new; everything, for another cycle than before, and where persons were deleted since."""
        # Asked before the feeds are read: whoever is deleted in between is found at the next look.
        deleted = server.deleted_persons()
        # With a person goes what they have said of others' turns, without a retraction in the feed. Which that is only
        # the server knows; so all is read again.
        if (state.cycle, deleted) != (self.cycle, self.deleted):
            self.cycle, self.deleted, self.turns, self.statements = state.cycle, deleted, {}, []
            self.turns_read, self.statements_read = 0, state.heard
            self.begun = set()
        for turn in server.turns(self.turns_read):
            if turn.number <= state.turns_seen:
                # A chat that goes on may do so at any time later, and is known by its id alone.
                self.begun.add(episode_of(turn))
                self.turns_read = turn.number
                continue
            # Who answered counts here, not what was said: a canary of days would fill the memory with words.
            self.turns[turn.id] = replace(turn, messages=(), answer={}, tools=(), prompt=(), tokens=(), logprobs=())
            self.turns_read = max(self.turns_read, turn.number)
        for one in server.feedback(self.statements_read):
            # An edit counts as a correction, whatever it says.
            self.statements.append(replace(one, why="", value="" if one.metric == EDIT else one.value))
            self.statements_read = max(self.statements_read, one.number)
        gone = {turn.id for turn in self.turns.values() if person_of(turn) in deleted}
        if gone:
            # What was said by or about them is gone from the feed, without a retraction.
            self.turns = {id: turn for id, turn in self.turns.items() if id not in gone}
            self.statements = [one for one in self.statements if one.target_id not in gone]
