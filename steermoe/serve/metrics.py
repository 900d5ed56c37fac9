"""What the server has done, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """routes: paths that are told apart; all others are one, so that clients cannot make new ones."""

    def __init__(self, routes: tuple[str, ...]):
        self.routes, self.registry = routes, CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made = {"registry": self.registry}
        self.requests = Counter("steermoe_requests", "answered, 499: the client had gone", ("route", "status"), **made)
        self.duration = Histogram("steermoe_request_seconds", "until the answer's end", ("route",), buckets=SECONDS, **made)
        self.at_work = Gauge("steermoe_requests_at_work", "now", **made)
        self.waiting = Gauge("steermoe_audio_waiting_seconds", "of audio that no batch has taken yet", **made)
        self.busy = Counter("steermoe_model_busy_seconds", "in which the model's thread was at work", **made)
        self.audio = Counter("steermoe_audio_seconds", "of audio read in batches", **made)
        self.pieces = Histogram("steermoe_batch_pieces", "of audio in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **made)

    def done(self, scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self.routes else "other"
        self.requests.labels(route, status).inc()
        self.duration.labels(route).observe(seconds)

    def batch(self, pieces: int, seconds: float) -> None:
        self.pieces.observe(pieces)
        self.audio.inc(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
