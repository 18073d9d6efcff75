"""What ``/metrics`` tells Prometheus.

With several workers each keeps its counts in files that all can read (prometheus-client's
multiprocess mode), so that whichever worker is asked tells of all of them. Budgets are read from
the books at that moment: they are the same for every worker and every host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from optllm_router._money import usd_from_nano

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from optllm_router._steps import Paid
    from optllm_router.ledger import Balance

WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder of the workers' counts; unset for one worker."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_METHODS = frozenset(("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"))
_MOST_BUDGETS = 1_000
_MOST_CODES = 100
"""Told apart: some are words of providers."""


class Metrics:
    """Counts of one worker, in a registry of its own.

    Args:
        balances: reads the budgets.
    """

    def __init__(self, balances: Callable[[], Sequence[Balance]]) -> None:
        self._routes: frozenset[str] = frozenset()
        self._balances = _Balances(balances)
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "optllm_requests",
            "Requests, by route and status; 499 when the client went away.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "optllm_request_seconds",
            "From the headers of a request to the last byte of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._answers = Counter(
            "optllm_answers", "Answers, by candidate.", ("candidate",), registry=self._registry
        )
        self._tokens = Counter(
            "optllm_tokens",
            "Tokens of the answers, by candidate and kind.",
            ("candidate", "kind"),
            registry=self._registry,
        )
        self._spent = Counter(
            "optllm_spent_usd",
            "What the answers cost; the budgets' gauges are exact.",
            ("candidate",),
            registry=self._registry,
        )
        self._first_token = Histogram(
            "optllm_first_token_seconds",
            "From asking a candidate to the first token of its stream.",
            ("candidate",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._codes: set[str] = set()
        self._refusals = Counter(
            "optllm_refusals",
            "Requests that ended in an error, by its code.",
            ("code",),
            registry=self._registry,
        )
        self.under_way = Gauge(
            "optllm_requests_under_way",
            "Requests that are being answered now.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def tell_apart(self, routes: Iterable[str]) -> None:
        """Count these paths under their own names, and all others as ``other``."""
        self._routes = frozenset(routes)

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        route = path if path in self._routes else "other"
        known = method if method in _METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answer(self, paid: Paid) -> None:
        """Count an answer and what it took."""
        name, usage = paid.candidate.name, paid.usage
        self._answers.labels(name).inc()
        self._tokens.labels(name, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(name, "completion").inc(usage.completion_tokens)
        self._spent.labels(name).inc(usd_from_nano(paid.cost_nano))
        if paid.first_token_seconds is not None:
            self._first_token.labels(name).observe(paid.first_token_seconds)

    def refusal(self, code: str) -> None:
        """Count a request that ended in an error."""
        if code not in self._codes and len(self._codes) >= _MOST_CODES:
            code = "other"
        self._codes.add(code)
        self._refusals.labels(code).inc()

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format; reads the store."""
        registry = self._registry
        if WORKERS_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(self._balances.registry)


class _Balances(Collector):
    """The budgets, read when they are asked for."""

    def __init__(self, read: Callable[[], Sequence[Balance]]) -> None:
        self._read = read
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering does not read the store."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One gauge per figure, each with all budgets."""
        figures = {
            "limit": "The cap of a budget.",
            "spent": "What was spent of a budget in its current window.",
            "reserved": "What calls under way have set aside.",
            "left": "What can still be set aside.",
        }
        balances = self._read()[:_MOST_BUDGETS]
        for figure, meaning in figures.items():
            family = GaugeMetricFamily(
                f"optllm_budget_{figure}_usd", meaning, labels=("budget", "window")
            )
            for balance in balances:
                usd = usd_from_nano(getattr(balance, f"{figure}_nano"))
                family.add_metric((balance.budget, balance.window), usd)
            yield family
