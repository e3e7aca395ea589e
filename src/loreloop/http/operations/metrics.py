"""`/metrics` in Prometheus' text format: what passed the HTTP process, and what the engines last said of themselves.

No key is needed, so nothing here names keys, deployments or checkpoints, and runs only by the beginning of their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.host.dispatcher import Dispatcher
from loreloop.host.engines import EngineState
from loreloop.host.recorder import Recorder
from loreloop.http.services import RequestCounts, services
from loreloop.protocol.link import LOAD_BUCKETS
from loreloop.store import turn_removal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHOWN_LETTERS = 8  # of a session's id


@dataclass(frozen=True)
class Sample:
    """One value of a metric, with the labels that tell it from its siblings."""

    value: float
    labels: dict[str, str]
    suffix: str = ""  # of the family's name


@dataclass(frozen=True)
class Family:
    """One metric with all its samples; `kind` is Prometheus' type (counter, gauge or histogram)."""

    name: str
    kind: str
    about: str
    samples: Sequence[Sample]

    def lines(self) -> Iterator[str]:
        """The lines of the text format: help, type, then one line a sample."""
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for sample in self.samples:
            labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
            yield f"{self.name}{sample.suffix}{f'{{{labels}}}' if labels else ''} {sample.value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


async def metrics(request: Request) -> Response:
    """All metrics of this server in Prometheus' text format."""
    served = services(request)
    families = [*of_requests(served.requests), *of_samples(served.dispatcher), *of_engines(served.dispatcher)]
    families += [*of_divergences(served.dispatcher), *of_recorder(served.recorder)]
    text = "".join(f"{line}\n" for family in families for line in family.lines())
    return Response(text, headers={"content-type": CONTENT_TYPE})


def of_requests(requests: RequestCounts) -> Iterable[Family]:
    """Counts and seconds of HTTP requests, by route and status code."""

    def labels(route: str, status_code: int) -> dict[str, str]:
        return {"route": route, "status": str(status_code)}

    n_requests = [Sample(n, labels(*key)) for key, n in requests.counts.items()]
    seconds = [Sample(spent, labels(*key)) for key, spent in requests.seconds.items()]
    yield Family("loreloop_http_requests_total", "counter", "HTTP requests by route and status.", n_requests)
    yield Family("loreloop_http_request_seconds_total", "counter", "Seconds they took, streams to their end.", seconds)


def _engines(dispatcher: Dispatcher) -> list[tuple[dict[str, str], EngineState]]:
    """Every engine with its labels: replicas have one more, so that a sum by model is still that of the model."""
    return [
        ({"model": model} | ({"replica": str(engine.number)} if engine.number else {}), engine)
        for model, group in dispatcher.engines.items()
        for engine in group.all
    ]


def of_samples(dispatcher: Dispatcher) -> Iterable[Family]:
    """Counts of samples, training operations and tokens by engine, since this process began."""
    counts = [(labels, engine.counts) for labels, engine in _engines(dispatcher)]
    # The outcome is a label, so that a failure rate is one division.
    for name, kind in (("sample_requests", "samples"), ("training_operations", "operations")):
        ended = [
            Sample(n, labels | {"outcome": outcome})
            for labels, one in counts
            for outcome, n in getattr(one, kind).items()
        ]
        yield Family(f"loreloop_{name}_total", "counter", f"{name.replace('_', ' ').capitalize()} that ended.", ended)
    for name, field, about in (
        ("prompt_tokens", "n_prompt_tokens", "Tokens of prompts of ended sample requests."),
        # The share of these in all prompt tokens is the hit rate of the prefix cache.
        ("cached_prompt_tokens", "n_cached_tokens", "Those of them whose keys and values were there already."),
        ("generated_tokens", "n_drawn_tokens", "Tokens drawn for ended sample requests."),
        ("engine_deaths", "n_deaths", "Engines that died, each replaced by the next."),
    ):
        found = [Sample(getattr(one, field), labels) for labels, one in counts]
        yield Family(f"loreloop_{name}_total", "counter", about, found)


def of_engines(dispatcher: Dispatcher) -> Iterable[Family]:
    """What each engine last said of its queues, cache pages and adapters; an engine that is down shows zeros."""
    # Every engine has its line even when it is down, so that a graph shows a zero and not a gap.
    engines = _engines(dispatcher)

    def gauge(name: str, about: str, value: Callable[[EngineState], float], kind: str = "gauge") -> Family:
        return Family(f"loreloop_{name}", kind, about, [Sample(value(one), labels) for labels, one in engines])

    yield gauge("engine_up", "1 where the engine is there.", lambda one: float(one.connection is not None))
    for field, about in (
        ("waiting_samples", "Sample requests that wait for room."),
        ("running_samples", "Sample requests that run."),
        ("waiting_ops", "Training operations that wait."),
    ):
        yield gauge(field, about, attrgetter(f"queues.{field}"))
    for field, kind, about in (
        ("kv_pages", "gauge", "Pages of the KV cache."),
        ("kv_pages_free", "gauge", "Those that hold nothing, not even a known prefix."),
        ("resident_revisions", "gauge", "Adapters in memory."),
        ("revision_hits", "counter", "Sample requests whose adapter was in memory."),
        ("revision_evictions", "counter", "Adapters that gave way to others."),
    ):
        yield gauge(f"{field}_total" if kind == "counter" else field, about, attrgetter(f"meters.{field}"), kind)
    yield gauge("revision_longest_load_seconds", "The slowest load.", attrgetter("meters.cold_loads.longest_seconds"))
    samples: list[Sample] = []
    for labels, engine in engines:
        loads = engine.meters.cold_loads
        # A histogram's buckets are cumulative: each holds all loads up to its bound, the last one all there were.
        for bound, n_loads in zip((*LOAD_BUCKETS, "+Inf"), accumulate(loads.counts), strict=True):
            samples.append(Sample(n_loads, labels | {"le": str(bound)}, "_bucket"))
        samples.append(Sample(loads.seconds, labels, "_sum"))
        samples.append(Sample(sum(loads.counts), labels, "_count"))
    yield Family("loreloop_revision_load_seconds", "histogram", "Loads of adapters that were not in memory.", samples)


def of_divergences(dispatcher: Dispatcher) -> Iterable[Family]:
    """How far the trainers of runs are from their samplers, by what their last passes told, and the alarms."""
    kept = dispatcher.observers.divergences
    last = [Sample(nats, {"model": kept.models[run], "run": shortened(run)}) for run, nats in kept.last.items()]
    yield Family("loreloop_sampler_kl_nats", "gauge", "Divergence of trainer and sampler in a run's last pass.", last)
    alarms = [Sample(kept.n_alarms[model], {"model": model}) for model in dispatcher.engines]
    yield Family("loreloop_sampler_kl_alarms_total", "counter", "Passes beyond the bound.", alarms)
    bound = [Sample(kept.alarm_nats, {})]
    yield Family("loreloop_sampler_kl_alarm_nats", "gauge", "The bound (engine.sampler_kl_alarm_nats).", bound)


def shortened(run: str) -> str:
    """A run's id without most of its session's: enough to know it by, too little to name its checkpoints."""
    session, separator, rest = run.partition(":")
    return f"{session[:SHOWN_LETTERS]}{separator}{rest}"


def of_recorder(recorder: Recorder) -> Iterable[Family]:
    """Turns of recording deployments: what became of those that ended (expired ones are counted for ever, the others
    since this process began), and what waits."""
    ended = {"kept": recorder.counts.kept, "dropped": recorder.counts.dropped}
    ended["expired"] = recorder.store.read(turn_removal.n_expired)
    samples = [Sample(n, {"outcome": outcome}) for outcome, n in ended.items()]
    yield Family("loreloop_recorded_turns_total", "counter", "Turns of recording deployments.", samples)
    waiting = [Sample(len(recorder.waiting), {})]
    yield Family("loreloop_recorder_waiting_turns", "gauge", "Turns that wait to be written.", waiting)
    held = [Sample(recorder.n_bytes, {})]
    yield Family("loreloop_recorder_waiting_bytes", "gauge", "Memory that they hold, about.", held)


ROUTES = [Route("/metrics", metrics, methods=["GET"])]
