"""Which class scores which kind of task.

A new kind is one subclass of `metric.Metric` and one line here; a class is imported when a task of its kind is scored.
"""

from __future__ import annotations

from importlib import import_module

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Metric

METRICS: dict[str, str] = {
    "pope": "yes_no:YesNo",
    "mme": "mme:Mme",
    "chair": "chair:Chair",
    "opope": "opope:Opope",
    "repope": "repope:RePope",
    "dash_b": "repope:DashB",
    "amber": "amber:Amber",
    "amber_captions": "amber_captions:AmberCaptions",
    "mmhal": "mmhal:MMHal",
    "mmhal_verdicts": "mmhal:Verdicts",
    "stock": "stock:Stock",
    "mentions": "mentions:Mentions",
}
"""Kind of task -> "module:class" in this package."""


def metric_of(kind: str) -> type[Metric]:
    """Return the class that scores a kind of task; raises `DataError` where there is none."""
    if kind not in METRICS:
        raise DataError(f"No kind of task is called {kind!r}; known are {', '.join(METRICS)}.")
    module, _, name = METRICS[kind].partition(":")
    found: type[Metric] = getattr(import_module(f"lvlm_guard.evals.metrics.{module}"), name)
    return found
