"""What a loop needs of its deployment, looked at before it begins: that it records, and has the metrics that are named.

Without these a loop would wait for ever, and nobody would know why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loreloop.learn.loop.config import LoopConfig
from loreloop.learn.loop.door import Deployed
from loreloop.protocol.errors import WrongSettings
from loreloop.protocol.feedback import EDIT, Metric

MEASURES = ("boolean", "float")  # kinds of metrics that say how content somebody is


def check_deployment(config: LoopConfig, now: Deployed, metrics: Mapping[str, Metric]) -> None:
    """WrongSettings where the deployment keeps no turns, or lacks a metric that loop.toml names."""
    if not now.recording.record:
        raise WrongSettings(
            f"The deployment {config.deployment!r} does not record, so there is nothing to learn from: "
            f"`loreloop deploy set {config.deployment} {now.target} --record` has it record from then on."
        )
    check_metrics("canary.metrics", config.canary.metrics, config.deployment, metrics)
    check_metrics("reward.metrics", config.reward.metrics, config.deployment, metrics)


def check_metrics(field: str, names: Iterable[str], deployment: str, metrics: Mapping[str, Metric]) -> None:
    """WrongSettings for a metric that the deployment does not have, or that is no measure."""
    for name in names:
        metric = metrics.get(name)
        if metric is None:
            raise WrongSettings(
                f"`{field}` names {name!r}, and the deployment {deployment!r} has no such metric; it has "
                f"{', '.join(sorted(metrics))}. Mend the name, or declare it by "
                f"`loreloop deploy metrics {deployment} FILE`."
            )
        # Of texts, corrections alone are a measure to the canary: an answer that had to be corrected counts 0.
        if field == "canary.metrics" and metric.kind not in MEASURES and name != EDIT:
            raise WrongSettings(
                f"`{field}` names {name!r}, whose values are texts ({metric.kind}) that measure nothing; name "
                f"booleans, floats or {EDIT!r}."
            )
        if field == "reward.metrics" and metric.kind == "comment":
            raise WrongSettings(f"`{field}` names {name!r}, a comment, from which no reward learns; leave it out.")
