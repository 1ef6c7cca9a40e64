"""What a server counts, as Prometheus reads it. Each app has a registry of its own: a process may have several."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """All that is counted. `under_way` is how many requests are being answered; it is the event loop's."""

    def __init__(self) -> None:
        self.under_way = 0
        self._registry = CollectorRegistry()
        self._queue = Gauge("actvar_queue_length", "Pictures that wait.", registry=self._registry)
        self._batches = Histogram(
            "actvar_batch_size", "Pictures drawn at a time.", buckets=_BATCHES, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "actvar_batch_seconds", "Time to draw a batch.", buckets=_SECONDS, registry=self._registry
        )
        self._scales = Histogram(
            "actvar_scale_seconds",
            "Time of a scale with its partial pictures, of batches whose partial pictures are sent.",
            ["scale"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._requests = Histogram(
            "actvar_request_seconds",
            "Time from a request for pictures to the end of its answer, of those that were answered with pictures.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._answering = Gauge(
            "actvar_requests_under_way", "Requests to /v1 that are being answered.", registry=self._registry
        )
        self._pictures = Counter("actvar_pictures", "Pictures drawn.", registry=self._registry)
        self._errors = Counter("actvar_errors", "Answers that were errors.", ["status"], registry=self._registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Whom to ask how many pictures wait."""
        self._queue.set_function(length)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request is answered as long as the block lasts."""
        self.under_way += 1
        self._answering.inc()
        try:
            yield
        finally:
            self.under_way -= 1
            self._answering.dec()

    def batch_drawn(self, pictures: int, seconds: float) -> None:
        """A batch of so many has ended."""
        self._batches.observe(pictures)
        self._batch_seconds.observe(seconds)
        self._pictures.inc(pictures)

    def scale_drawn(self, scale: int, seconds: float) -> None:
        """A scale of a batch has ended."""
        self._scales.labels(scale).observe(seconds)

    def request_answered(self, seconds: float) -> None:
        """A request has its pictures."""
        self._requests.observe(seconds)

    def error_answered(self, status: int) -> None:
        """An answer was an error of this status."""
        self._errors.labels(status).inc()

    def text(self) -> bytes:
        """All of it, as CONTENT_TYPE."""
        return generate_latest(self._registry)
