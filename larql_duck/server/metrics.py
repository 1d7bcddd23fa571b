"""Counts of requests, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "larql_duck_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "larql_duck_request_seconds",
            "Time to answer a request.",
            ["route"],
            buckets=_BOUNDS,
            registry=registry,
        )
        self.running = Gauge("larql_duck_requests_running", "Requests being answered.", registry=registry)
        self.sessions = Gauge("larql_duck_edit_sessions", "Sessions with edits.", registry=registry)
        self.waiting = Gauge(
            "larql_duck_model_waiting", "Requests that wait for the model.", registry=registry
        )
        self.batches = Gauge("larql_duck_model_batches", "Turns of the model's thread.", registry=registry)
        self.batched = Gauge(
            "larql_duck_model_requests", "Requests answered in these turns.", registry=registry
        )
        self.total = 0

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one request; route is the pattern of its path, so that there are few."""
        self.total += 1
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The counts in Prometheus's text format."""
        return generate_latest(self._registry)
