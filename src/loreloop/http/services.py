"""What a route needs, as one typed value on the application's state."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, cast

from starlette.requests import Request

from loreloop.config import Config
from loreloop.deployments.model_names import ModelNames
from loreloop.deployments.model_texts import ModelTexts
from loreloop.host.dispatcher import Dispatcher
from loreloop.host.job_desk import JobDesk
from loreloop.host.recorder import Recorder
from loreloop.host.waiting import Places
from loreloop.http import tokens
from loreloop.http.grading import Grading
from loreloop.http.guessing import Guesses, address_of
from loreloop.http.loop.giving import Desk
from loreloop.http.loop.standings import Standings
from loreloop.http.pictures import Pictures
from loreloop.protocol.errors import Forbidden, Unauthorized
from loreloop.protocol.paths import CheckpointPath
from loreloop.store import audit, keys
from loreloop.store.files import SECRET, read_secret
from loreloop.store.rows import KeyRow, KeyUsage, MemoryName
from loreloop.store.store import Store
from loreloop.text.grammars.sandbox import GrammarSandbox

UPLOADS_READ_AT_ONCE = 2
ADMIN, TRAIN, INFER, FEEDBACK = "admin", "train", "infer", "feedback"
# Nobody who asks may thereby judge the answers: an agent must not mark itself.
IMPLIED = {
    ADMIN: (ADMIN, TRAIN, INFER, FEEDBACK),
    TRAIN: (TRAIN, INFER),
    INFER: (INFER,),
    FEEDBACK: (FEEDBACK,),
}


@dataclass
class RequestCounts:
    """HTTP requests by (route, status code): how many, and how long they took together, streams to their end."""

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, route: str, status_code: int, seconds: float) -> None:
        """Counts one request that took so many seconds."""
        self.counts[route, status_code] += 1
        self.seconds[route, status_code] += seconds


class NotedRead(NamedTuple):
    """That a key has read a checkpoint for a purpose on a day, counted from the epoch: it is in the audit log."""

    key_id: str
    path: CheckpointPath
    purpose: str
    day: int


@dataclass(frozen=True)
class Services:
    """All that routes work with. `nonce` tells this start of the server from others at the same address; `has_worker`
    whether there is a process that does fine-tuning jobs."""

    config: Config
    store: Store
    dispatcher: Dispatcher
    names: ModelNames
    texts: ModelTexts
    pictures: Pictures
    desk: JobDesk
    has_worker: bool = False
    requests: RequestCounts = field(default_factory=RequestCounts)
    places: Places = field(default_factory=Places)
    standings: Standings = field(default_factory=Standings)
    sandbox: GrammarSandbox = field(default_factory=GrammarSandbox)
    grading: Grading = field(default_factory=Grading)
    # Large uploads are read by processes of their own, of which each key could otherwise start any number.
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_READ_AT_ONCE))
    arriving: Counter[str] = field(default_factory=Counter)  # bytes of uploads that are coming in, by key
    nonce: str = ""
    remembering: set[MemoryName] = field(default_factory=set)  # memories with a request on them
    noted_reads: set[NotedRead] = field(default_factory=set)  # of others' weights, by requests for single answers

    @cached_property
    def secret(self) -> bytes:
        """What tokens and addresses are signed with; read once, at the start."""
        return read_secret(self.store.folder / SECRET)

    @cached_property
    def ended_visits(self) -> dict[str, int]:
        """Visits of the pages that their visitors have ended, by their nonces, with when their cookies end; the first
        time those of a server before this one."""
        return self.store.read(audit.ended_visits, now())

    @cached_property
    def recorder(self) -> Recorder:
        """What keeps the turns of recording deployments."""
        return Recorder(self.store)

    @cached_property
    def guesses(self) -> Guesses:
        """What slows wrong keys down."""
        return Guesses(self.store)

    @cached_property
    def feedback(self) -> Desk:
        """Where feedback is taken."""
        return Desk(self.recorder)


def services(request: Request) -> Services:
    """The services of the application that received the request."""
    return cast(Services, request.app.state.services)


def caller(request: Request, scope: str) -> KeyRow:
    """Whose key came with the request; it must carry `scope`."""
    key = _known(request)
    if not has(key, scope):
        raise Forbidden(f"This needs the scope {scope!r}; the key {key.name!r} has {', '.join(key.scopes) or 'none'}.")
    return key


def holder(request: Request, scope: str) -> KeyRow:
    """Like `caller`, for what only a key itself may do: Forbidden for what stands for one a while, a token or the
    secret of a job, since it would outlive its end by it."""
    key = caller(request, scope)
    if stands_for_key(request):
        raise Forbidden("This came with a token or a job's secret, which only stand for a key; send the key itself.")
    return key


def stands_for_key(request: Request) -> bool:
    """Whether what came with a request is no key, but a token or the secret of a job."""
    secret = secret_of(request)
    return secret.startswith(tokens.BEGINNING) or services(request).desk.key_of(secret) is not None


def asker(request: Request) -> KeyRow:
    """Whose key came with the request; it must carry `infer`, be it for deployments alone: `may_use` tells."""
    key = _known(request)
    return key if key.deployments else caller(request, INFER)


def judge(request: Request) -> KeyRow:
    """Whose key came with the request; it must carry `feedback`, be it for certain deployments alone."""
    key = _known(request)
    return key if key.judged else caller(request, FEEDBACK)


def may_use(key: KeyRow, model: str) -> None:
    """Forbidden for a key that may ask certain deployments only, unless `model` is one of them."""
    if not has(key, INFER) and model not in key.deployments:
        raise Forbidden(f"The key {key.name!r} may ask {', '.join(key.deployments)} only, not {model[:200]!r}.")


def has(key: KeyRow, scope: str) -> bool:
    """Whether the key carries `scope`, itself or by a higher one that implies it."""
    return any(scope in IMPLIED.get(held, ()) for held in key.scopes)


def secret_of(request: Request) -> str:
    """The secret that came with a request, whoever's it may be; empty where none came."""
    scheme, _, bearer = request.headers.get("authorization", "").strip().partition(" ")
    # A header without a scheme is the key alone; it then ends up where the scheme is expected.
    if scheme.lower() != "bearer":
        bearer = scheme  # the bare key, as some send it
    # Anthropic's clients and the Tinker SDK send `x-api-key`, OpenAI's send a bearer token.
    return request.headers.get("x-api-key") or bearer.strip()


def _known(request: Request) -> KeyRow:
    secret = secret_of(request)
    if not secret:
        raise Unauthorized("No key came with this request; set TINKER_API_KEY, or send Authorization: Bearer tml-….")
    key = known_key(request, secret)
    if key is None:
        raise Unauthorized("This key is not one of this server, or was revoked; `loreloop keys create` makes one.")
    services(request).dispatcher.meter.add(key.id, KeyUsage(last_used=now()))
    request.scope["state"]["key_name"] = key.name  # for the log
    return key


def known_key(request: Request, secret: str) -> KeyRow | None:
    """The key that a secret stands for, or a token; None where it is none of this server, or was revoked."""
    served = services(request)
    # The worker comes with a secret for each job, which means the key that asked for the job, with what that may do.
    owner = served.desk.key_of(secret)
    if owner is None and secret.startswith(tokens.BEGINNING):
        owner = tokens.key_id_of(served.secret, secret, now())
    # What is signed by this server was no guess, whatever became of its key.
    return found_key(request, secret) if owner is None else served.store.read(keys.active, owner, now())


def found_key(request: Request, secret: str) -> KeyRow | None:
    """The key whose secret this is; None where it is none of this server, or was revoked. Unavailable where too many
    wrong ones came from the address of the request."""
    served, address = services(request), address_of(request.scope.get("client"))
    served.guesses.admit(address, secret)
    key = served.store.read(keys.find, secret, now())
    served.guesses.learn(address, secret, right=key is not None)
    return key


def now() -> float:
    """The time in seconds since the epoch, as the store's rows hold it."""
    return time.time()


def fresh_seed() -> int:
    """A random seed of 63 bits, which fits the signed integers of the wire and of SQLite."""
    return secrets.randbits(63)
