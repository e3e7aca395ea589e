"""`/metrics` in Prometheus' text format: what passed the HTTP process, and what the engines last said of themselves.

No key is needed, so nothing here names keys, deployments or checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loreloop.host.dispatcher import Dispatcher
from loreloop.host.recorder import Recorder
from loreloop.http.services import RequestCounts, services
from loreloop.protocol.link import LOAD_BUCKETS
from loreloop.store import turn_removal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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
    families += of_recorder(served.recorder)
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


def of_samples(dispatcher: Dispatcher) -> Iterable[Family]:
    """Counts of samples, training operations and tokens by model, since this process began."""
    counts = {model: dispatcher.counts(model) for model in dispatcher.engines}
    # The outcome is a label, so that a failure rate is one division.
    for name, kind in (("sample_requests", "samples"), ("training_operations", "operations")):
        ended = [
            Sample(n, {"model": model, "outcome": outcome})
            for model, one in counts.items()
            for outcome, n in getattr(one, kind).items()
        ]
        yield Family(f"loreloop_{name}_total", "counter", f"{name.replace('_', ' ').capitalize()} that ended.", ended)
    for name, field, about in (
        ("prompt_tokens", "n_prompt_tokens", "Tokens of prompts of ended sample requests."),
        # The share of these in all prompt tokens is the hit rate of the prefix cache.
        ("cached_prompt_tokens", "n_cached_tokens", "Those of them whose keys and values were there already."),
        ("generated_tokens", "n_drawn_tokens", "Tokens drawn for ended sample requests."),
        ("engine_deaths", "n_deaths", "Engines that ended, each replaced by the next."),
    ):
        found = [Sample(getattr(one, field), {"model": model}) for model, one in counts.items()]
        yield Family(f"loreloop_{name}_total", "counter", about, found)


def of_engines(dispatcher: Dispatcher) -> Iterable[Family]:
    """What each engine last said of its queues, cache pages and adapters; an engine that is down shows zeros."""

    def gauge(name: str, about: str, values: dict[str, float], kind: str = "gauge") -> Family:
        return Family(f"loreloop_{name}", kind, about, [Sample(v, {"model": m}) for m, v in values.items()])

    # Every engine has its line even when it is down, so that a graph shows a zero and not a gap.
    queues = {model: dispatcher.queues(model) for model in dispatcher.engines}
    meters = {model: dispatcher.meters(model) for model in dispatcher.engines}
    yield gauge(
        "engine_up", "1 where the engine is there.", {m: float(dispatcher.is_up(m)) for m in dispatcher.engines}
    )
    for field, about in (
        ("waiting_samples", "Sample requests that wait for room."),
        ("running_samples", "Sample requests that run."),
        ("waiting_ops", "Training operations that wait."),
    ):
        yield gauge(field, about, {m: getattr(q, field) for m, q in queues.items()})
    for field, kind, about in (
        ("kv_pages", "gauge", "Pages of the KV cache."),
        ("kv_pages_free", "gauge", "Those that hold nothing, not even a known prefix."),
        ("resident_revisions", "gauge", "Adapters in memory."),
        ("revision_hits", "counter", "Sample requests whose adapter was in memory."),
        ("revision_evictions", "counter", "Adapters that gave way to others."),
    ):
        name = f"{field}_total" if kind == "counter" else field
        yield gauge(name, about, {m: getattr(one, field) for m, one in meters.items()}, kind)
    loads = {model: one.cold_loads for model, one in meters.items()}
    yield gauge(
        "revision_longest_load_seconds", "The slowest load.", {m: one.longest_seconds for m, one in loads.items()}
    )
    samples: list[Sample] = []
    for model, one in loads.items():
        # A histogram's buckets are cumulative: each holds all loads up to its bound, the last one all there were.
        for bound, n_loads in zip((*LOAD_BUCKETS, "+Inf"), accumulate(one.counts), strict=True):
            samples.append(Sample(n_loads, {"model": model, "le": str(bound)}, "_bucket"))
        samples.append(Sample(one.seconds, {"model": model}, "_sum"))
        samples.append(Sample(sum(one.counts), {"model": model}, "_count"))
    yield Family("loreloop_revision_load_seconds", "histogram", "Loads of adapters that were not in memory.", samples)


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
