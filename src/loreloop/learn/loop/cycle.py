"""One loop's course: idle, collecting, training, gate, canary, and idle again; a step at a time.

Every step can be done again: it reads where the loop stands, does its work, and moves the state last. A process may die
anywhere in between, and the next one goes on from the same place with the same decision. What a step needs of the world
is handed in, so that the course runs without a server and without training too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from loreloop.learn.loop.adopting import Adopted, adopted, ended, promoted, state_of
from loreloop.learn.loop.canary import PROMOTES, Watched, evidence_of, watch
from loreloop.learn.loop.collecting import Collected, Rules, Used, collect, fresh_of
from loreloop.learn.loop.config import LoopConfig
from loreloop.learn.loop.cycle_files import Data, data_of, drop_lines, drop_names, lay_out
from loreloop.learn.loop.door import Deployed
from loreloop.learn.loop.gate import Gated, Sides
from loreloop.learn.loop.listening import Hear, Listening
from loreloop.learn.loop.persons import PersonCourse
from loreloop.learn.loop.portioning import portioned, told_of_cycle, told_of_wait
from loreloop.learn.loop.reward.events import HeldOut, nothing_held_out
from loreloop.learn.loop.server import Server
from loreloop.learn.loop.state import Decision, LoopFolder, Revision, State, Verdict, key_of
from loreloop.learn.loop.training import Made
from loreloop.learn.loop.triggers import Moment, due, night_of
from loreloop.learn.loop.watched_feeds import WatchedFeeds
from loreloop.learn.loop.watching import StoppedByGuards
from loreloop.learn.loop.withdrawing import withdrawn
from loreloop.protocol.episodes import Turn
from loreloop.protocol.errors import BadRequest, Conflict, Gone, NotFound
from loreloop.protocol.feedback import BUILT_IN, Metric
from loreloop.protocol.loop_rest import LoopStanding

DAY_SECONDS = 86_400.0
NAMED = 10  # cycles back from a new one whose files may still hold names; cycles without a training collect nothing
WITHDRAWN = "withdrawn"  # among a decision's numbers, where it is for that that a canary ends
WITHOUT_THEM = "a new cycle begins without them"


async def _sweep_nothing(keep: Collection[str]) -> None:
    """Where no guard looks at a training, it leaves no copies."""


@dataclass(frozen=True)
class Work:
    """What is done in a cycle beside moving it on. `train` makes a candidate out of a cycle's folder, `look` puts one
    through the offline gate, `learn_reward` lets the reward hear of all turns and statements first; None where none
    learns. `sweep` deletes the copies of weights that guards have looked at, but for those of some paths. `golden` are
    the keys of prompts that are never trained on, as they are now."""

    train: Callable[[Path, str | None, str], Awaitable[Made | None]]
    look: Callable[[Sides, Sequence[Turn], Sequence[Turn]], Awaitable[Gated]]
    learn_reward: Hear | None = None
    sweep: Callable[[Collection[str]], Awaitable[None]] = _sweep_nothing
    golden: Callable[[], frozenset[str]] = frozenset
    held_out: HeldOut = nothing_held_out
    metrics: Mapping[str, Metric] = field(default_factory=lambda: BUILT_IN)


@dataclass
class Course:
    """A loop that goes on. `now` gives seconds since the epoch; `asked` begins one cycle whatever the triggers say."""

    config: LoopConfig
    folder: LoopFolder
    server: Server
    work: Work
    now: Callable[[], float]
    asked: bool = False
    persons: PersonCourse | None = None
    persons_heard: int = -1  # up to which statement persons were looked at, by this process
    nameless: int = 0  # up to which cycle no names are left, as far as this process has looked
    is_persons_turn: bool = True  # where a person and a shared cycle are both due, they take turns
    feeds: WatchedFeeds = field(default_factory=WatchedFeeds)
    shown: LoopStanding | None = None  # what the server was told last
    listening: Listening = field(init=False)

    def __post_init__(self) -> None:
        self.listening = Listening(server=self.server, hear=self.work.learn_reward, now=self.now)

    def begin(self, base_model: str) -> State:
        """Where the loop stands; a first state, made of the deployment, for one that has not begun. Conflict where its
        weights cannot be trained on."""
        state = self.folder.load()
        if state is None:
            target = self.server.deployment().target
            champion = Revision(target=target, state=state_of(target, self.config.start))
            state = State(champion=champion, base_model=base_model)
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self.folder.save(state)
        if not state.night and (night := night_of(self.config.triggers, self.now(), "")):
            # Nights are counted from here on, also where the loop had none before.
            state = replace(state, night=night)
            self.folder.save(state)
        return state

    async def step(self) -> bool:
        """Does what is next; False where nothing was to be done but to wait."""
        state = self.folder.load()
        if state is None:
            raise Conflict("The loop has not begun; `begin` makes its first state.")
        now = self.server.deployment()
        if (found := self._adopted(state, now)) is not None:
            self._adopt(state, found)
            return True
        match state.stage:
            case "idle":
                return await self._wait(state)
            case "collecting" if self.folder.paused:
                self._forget()
                self._drop_names(state, state.cycle - 1)
                # A cycle whose words were withdrawn is begun anew by itself, and a paused loop begins none.
                self.folder.tell("The loop is paused; `loreloop loop pause --off` lets it go on.")
                return False
            case "collecting":
                await self._collect(state)
            case "training":
                await self._train(state)
            case "gate":
                return await self._gate(state)
            case "canary":
                # A canary may wait for its users for days, in which persons get theirs, one between two looks at it.
                return self._watch(state, now) or await self._looked_after(state)
        return True

    def _adopted(self, state: State, now: Deployed) -> Adopted | None:
        decision = self._on_canary(state)
        return adopted(state, now, self.config.start, decision.verdict if decision else None)

    def _on_canary(self, state: State) -> Decision | None:
        """What was decided about the candidate: a promotion gives way where words of it are taken back before it is
        done."""
        return self.folder.decided(key_of(state, WITHDRAWN)) or self.folder.decided(key_of(state, "canary"))

    def _adopt(self, state: State, found: Adopted) -> None:
        """Goes on from what somebody has deployed; a cycle that was to better what answered before ends with it."""
        self._decide(state, found.stage, found.verdict, found.sentence)
        if state.stage != "idle":
            if found.verdict == "adopted":
                what = f"{found.sentence.rstrip('.')}; so the cycle ends, and its candidate with it."
                self._decide(state, "void", "void", what)
            drop_lines(self.folder.cycle(state.cycle))
        self.folder.save(found.state)

    def _moved(self, state: State, now: Deployed, canary: Revision | None = None, percent: float = 0.0) -> bool:
        """Has the state's champion answer, and perhaps a canary beside it, if the deployment is still as it was looked
        at. False where somebody was faster: the next step finds what they did."""
        try:
            self.server.deploy(state.champion.target, canary.target if canary else None, percent, now.version)
        except Conflict:
            if self.server.deployment().version == now.version:
                raise
            return False
        return True

    # The stages

    async def _wait(self, state: State) -> bool:
        self._forget()
        self._drop_names(state, state.cycle)
        if self.folder.paused:
            self.folder.tell("The loop is paused; `loreloop loop pause --off` lets it go on.")
            return False
        if (proposed := self.folder.proposed()) is not None:
            self._stand(state, proposed)
            return True
        said = [one for one in self.server.feedback(state.heard) if not one.retracted]
        anew = self.folder.to_retrain
        moment = Moment(now=self.now(), n_said=len(said) + state.left, night=state.night, asked=self.asked or anew)
        why, night = due(self.config.triggers, moment), night_of(self.config.triggers, moment.now, state.night)
        # Where people never stop talking, a shared cycle is always due, and of persons there may be many: neither waits
        # for more than one of the other.
        if (why is None or (self.is_persons_turn and why != "asked")) and await self._looked_after(state):
            self.is_persons_turn = False
            return True
        if why is None:
            if night != state.night:
                # A night without anything new is over; what is said by day waits for the next one.
                self.folder.save(replace(state, night=night))
            wanted = self.config.triggers.feedback
            self.folder.tell(told_of_wait(len(said), state.left, wanted), statements=len(said))
            return False
        self.asked, self.is_persons_turn = False, True
        begun = replace(state, stage="collecting", cycle=state.cycle + 1, candidate=None, night=night, from_start=anew)
        self.folder.save(begun)
        # Asked for meanwhile, it is for the next cycle; and a death in between has it done twice and not never.
        if anew:
            self.folder.retrain(False)
        return True

    def _stand(self, state: State, proposed: Revision) -> None:
        """Lets weights that were made elsewhere stand before the gate as the candidate of a cycle without training."""
        if any(one.candidate == proposed.target for one in self.folder.decisions()):
            # Tried already; the process died before the proposal was taken away.
            self.folder.withdraw()
            return
        cycle = state.cycle + 1
        data = Data(used={}, heard=state.heard, turns_seen=state.turns_seen)
        lay_out(self.folder.cycle(cycle), Collected(), (), data)
        candidate = replace(proposed, cycle=cycle)
        self.folder.save(replace(state, stage="gate", cycle=cycle, candidate=candidate))
        self.folder.withdraw()

    async def _looked_after(self, state: State) -> bool:
        """Makes the adapter of one person who is due; False where nobody is, or nobody shall have one."""
        if self.persons is None:
            return False
        # Also where nobody is to have weights any more.
        self._forget()
        if not self.persons.rules.corrections or self.folder.paused:
            return False
        heard = max(
            (one.number for one in self.server.feedback(max(0, self.persons_heard))), default=self.persons_heard
        )
        if heard == self.persons_heard:
            return False
        statements, turns = list(self.server.feedback()), list(self.server.turns())
        if await self.persons.step(state.champion, turns, statements, self._rules()):
            return True
        self.persons_heard = heard
        return False

    def _forget(self) -> None:
        """Keeps nothing of whoever was deleted, also while a loop is paused."""
        if self.persons is not None and self.persons.forget():
            self.persons_heard = -1  # what the others of a team have said is looked at again

    def _drop_names(self, state: State, last: int) -> None:
        """Forgets whose turns cycles up to the last one have learned from. Not at a cycle's own end: one that dies
        there looks at its names once more."""
        if self.nameless < last:
            for number in range(max(1, state.cycle - NAMED), last + 1):
                drop_names(self.folder.cycle(number))
            self.nameless = last

    async def _collect(self, state: State) -> None:
        self._drop_names(state, state.cycle - 1)
        if self.folder.decided(key_of(state, "collecting")) is not None:
            # The process died behind the decision; what has been said since is for the next cycle.
            self.folder.save(ended(state))
            return
        await self._sweep(state)
        alarm = await self.listening.listen()
        # Read behind the reward, which may have learned for minutes: whoever has withdrawn meanwhile is left out.
        turns, statements = list(self.server.turns()), list(self.server.feedback())
        training = self.config.training
        found = collect(turns, statements, portioned(self._rules(), training, self.folder, state))
        methods = [one for one in training.methods if len(found.lines.get(one, ())) >= training.least_examples]
        heard = max((one.number for one in statements), default=state.heard)
        seen = max((turn.number for turn in turns), default=state.turns_seen)
        state = replace(state, heard=max(heard, state.heard), turns_seen=seen, left=found.left)
        numbers = {f"{name}_examples": len(lines) for name, lines in sorted(found.lines.items())}
        if alarm or not methods:
            # Before the decision, behind which nobody reads the feeds once more for this cycle.
            # Nothing was tried, so that what is left over would begin one such cycle behind another.
            state = replace(state, left=0)
            self.folder.save(state)
            few = f"No method of the loop has the {training.least_examples} examples that it needs."
            self._decide(state, "collecting", "void", alarm or few, numbers)
            self.folder.save(ended(state))
            return
        used: dict[str, tuple[Used, ...]] = {name: tuple(found.used[name]) for name in methods}
        data = Data(used=used, heard=state.heard, turns_seen=seen, from_start=state.from_start)
        lay_out(self.folder.cycle(state.cycle), found, methods, data)
        self.folder.tell(told_of_cycle(state.cycle, found), **numbers)
        self.folder.save(replace(state, stage="training"))

    async def _train(self, state: State) -> None:
        if (decision := self.folder.decided(key_of(state, "training"))) is not None:
            # The process died behind the decision, and some or all of the lines are gone.
            self._give_up(state, "training", decision.sentence)
            await self._sweep(state)
            return
        folder = self.folder.cycle(state.cycle)
        data = data_of(folder)
        name = f"{self.config.deployment}-{state.cycle:04d}"
        # Marked before the first step, so that no weights have learned from a turn that does not say so.
        champion = state.champion
        start, began = (self.config.start, None) if state.from_start else (champion.state, champion.target)
        if self._void(state, data, self.server.mark_used(name, None, data.turns, began)):
            return
        try:
            made = await self.work.train(folder, start, name)
        except StoppedByGuards as error:
            self._give_up(state, "training", error.message)
            await self._sweep(state)
            return
        except BadRequest as error:
            # What is refused once is refused always; the next cycle has other lines.
            self._give_up(state, "training", f"The training was refused: {error.message}")
            await self._sweep(state)
            return
        if made is None:
            raise Conflict(
                f"The files of cycle {state.cycle} are gone from {folder}; remove the folder, and run again."
            )
        if self._void(state, data, self.server.mark_used(name, made.path, data.turns, began)):
            return
        candidate = Revision(target=made.path, state=made.state, cycle=state.cycle)
        if made.alarm:
            what = f"{made.alarm} The last revision of it that was good goes on to the gate."
            # Not the key of a training that is given up, which this one may be yet where the process dies here.
            self._decide(replace(state, candidate=candidate), "stopped", "stopped", what)
        self.folder.tell(f"Candidate {state.cycle} stands before the offline gate.")
        self.folder.save(replace(state, stage="gate", candidate=candidate))
        await self._sweep(replace(state, candidate=candidate))

    async def _sweep(self, state: State) -> None:
        """Deletes what guards have left of trainings; what answers, may answer, or is named by a decision stays."""
        named = (state.champion, state.previous, state.candidate, self.folder.proposed())
        keep = {path for one in named if one is not None for path in (one.target, one.state) if path}
        # Where trainings begin that may not begin at the champion.
        keep |= {self.config.start} if self.config.start else set()
        await self.work.sweep(keep | {one.candidate for one in self.folder.decisions() if one.candidate})

    def _void(self, state: State, data: Data, unknown: Sequence[str] = ()) -> bool:
        """Ends a cycle that would teach what a person said who has been deleted since, or turns that are gone; the next
        begins without them."""
        if not (what := withdrawn(data, self.server, unknown)):
            return False
        self._decide(state, "void", "void", f"{what}; {WITHOUT_THEM}.")
        drop_lines(self.folder.cycle(state.cycle))
        self.folder.save(_anew(state))
        return True

    def _give_up(self, state: State, stage: str, sentence: str) -> None:
        """Ends a cycle of which the server will not have more."""
        self._decide(state, stage, "void", sentence)
        drop_lines(self.folder.cycle(state.cycle))
        self.folder.save(ended(state))

    async def _gate(self, state: State) -> bool:
        candidate = state.candidate
        assert candidate is not None, "the gate has a candidate"
        data = data_of(self.folder.cycle(state.cycle))
        decision = self.folder.decided(key_of(state, "gate"))
        if decision is None:
            if self._void(state, data):
                return True
            try:
                gated = await self._looked(state, candidate, data)
            except BadRequest as error:
                # As for the training: the same candidate would be refused again.
                self._give_up(state, "gate", error.message)
                return True
            fine = not gated.broken
            sentence = (
                "The candidate holds all limits of the offline gate."
                if fine
                else f"Rejected: {'; '.join(gated.broken)}."
            )
            sentence = " ".join((sentence, *gated.notes))
            decision = self._decide(state, "gate", "passed" if fine else "rejected", sentence, gated.numbers)
        if decision.verdict != "passed":
            drop_lines(self.folder.cycle(state.cycle))
            self.folder.save(ended(state))
            return True
        # The gate has taken its time, and somebody may have taken words back, or moved the deployment meanwhile.
        if self._void(state, data):
            return True
        return self._begin_canary(state, candidate)

    def _begin_canary(self, state: State, candidate: Revision) -> bool:
        """Has some of the users meet the candidate; False where it waits for a canary that somebody else has."""
        now = self.server.deployment()
        if self._adopted(state, now):
            return True
        if now.canary not in (None, candidate.target):
            self.folder.tell(
                f"Somebody tries {now.canary} as a canary by hand; the candidate waits until that has come to its end."
            )
            return False
        try:
            if not self._moved(state, now, candidate, self.config.canary.percent):
                return True
        except (BadRequest, NotFound, Gone) as error:
            self._give_up(state, "canary", f"The server did not take the candidate: {error.message}")
            return True
        version = self.server.deployment().version
        drop_lines(self.folder.cycle(state.cycle))
        self.folder.save(replace(state, stage="canary", since=self.now(), since_version=version))
        return True

    async def _looked(self, state: State, candidate: Revision, data: Data) -> Gated:
        turns, n = list(self.server.turns()), self.config.gate.prompts
        sides = Sides(candidate.target, state.champion.target)
        return await self.work.look(sides, fresh_of(turns, (), n), fresh_of(turns, {*data.turns}, n))

    def _watch(self, state: State, now: Deployed) -> bool:
        """Looks at the canary's evidence; a decision that was made is carried out, whatever is said since."""
        candidate = state.candidate
        assert candidate is not None, "a canary has a candidate"
        decision = self._on_canary(state)
        if decision is None:
            seen = self._seen(state)
            verdict = self._verdict(state, seen)
            if verdict is None:
                self.folder.tell(seen.sentence, **seen.numbers)
                return self._widened(state, now, seen)
            what = self._taken_back(state) if verdict == "promoted" else ""
            if what:
                verdict, seen = "rolled_back", Watched(seen.outcome, {WITHDRAWN: True}, f"{what}; {WITHOUT_THEM}.")
            decision = self._decide(state, "canary", verdict, seen.sentence, seen.numbers)
        elif decision.verdict == "promoted" and now.target != candidate.target and (what := self._taken_back(state)):
            # Between a decision and its being done lies a death, or a server that was away, for however long.
            decision = self._decide(state, WITHDRAWN, "rolled_back", f"{what}; {WITHOUT_THEM}.", {WITHDRAWN: True})
        is_anew = decision.numbers.get(WITHDRAWN)
        after = promoted(state) if decision.verdict == "promoted" else _anew(state) if is_anew else ended(state)
        # Who has set a canary of their own since keeps it: where ours is gone, there is nothing left to move.
        is_done = now.target == after.champion.target and now.canary not in (None, candidate.target)
        if is_done or self._moved(after, now):
            self.folder.save(after)
        return True

    def _taken_back(self, state: State) -> str:
        """What has been taken back of what the cycle learned, in words; "" for nothing."""
        return withdrawn(data_of(self.folder.cycle(state.cycle)), self.server)

    def _seen(self, state: State) -> Watched:
        rules = self.config.canary
        self.feeds.read_on(self.server, state)
        evidence = evidence_of(
            self.feeds.turns.values(),
            self.feeds.statements,
            rules,
            state.since_version,
            self.work.metrics,
            self.feeds.begun,
        )
        days = (self.now() - state.since) / DAY_SECONDS
        return watch(evidence, rules, is_over=days > rules.most_days)

    def _verdict(self, state: State, seen: Watched) -> Verdict | None:
        if seen.outcome.is_open:
            return None
        if seen.outcome.kind in PROMOTES:
            # Whoever pauses a loop may trust its alarms, and wants to see its promotions first.
            return None if self.folder.paused else "promoted"
        return "rolled_back"

    def _widened(self, state: State, now: Deployed, seen: Watched) -> bool:
        """Gives the candidate its larger share once enough of its episodes have shown no harm."""
        rules, candidate = self.config.canary, state.candidate
        assert candidate is not None, "a canary has a candidate"
        if seen.numbers["candidate_episodes"] < rules.least_episodes:
            return False
        if now.canary_percent >= rules.then_percent:
            return False
        self._moved(state, now, candidate, rules.then_percent)
        return True

    # Small things

    def _rules(self) -> Rules:
        training = self.config.training
        return Rules(
            deleted=self.server.deleted_persons(),
            golden=self.work.golden(),
            held_out=self.work.held_out,
            most=training.most_examples,
            most_per_person=training.most_per_person,
            liked=training.liked,
        )

    def _decide(
        self, state: State, stage: str, verdict: Verdict, sentence: str, numbers: Mapping[str, Any] | None = None
    ) -> Decision:
        made = Decision(
            key=key_of(state, stage),
            cycle=state.cycle,
            stage=stage,
            verdict=verdict,
            sentence=sentence,
            numbers=dict(numbers or {}),
            at=self.now(),
            candidate=state.candidate.target if state.candidate else None,
            champion=state.champion.target,
        )
        self.folder.tell(sentence, **made.numbers)
        return self.folder.decide(made)


def _anew(state: State) -> State:
    """The state behind a cycle whose words were withdrawn: the next one begins at once."""
    return replace(ended(state), stage="collecting", cycle=state.cycle + 1)
