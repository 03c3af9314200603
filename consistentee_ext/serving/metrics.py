"""What Prometheus is told: text-embeddings-inference's names, and ours of exits."""

from __future__ import annotations

import os
import re
import time
from collections import Counter, deque
from collections.abc import Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from consistentee_ext.serving.request import Answer, Row

SECONDS = [15e-6 * 1.5**power for power in range(35)]
SIZES = [2.0**power for power in range(16)]
RECENT_SECONDS = 10


class Metrics:
    """Counters of one process; also what the status page shows."""

    def __init__(self, num_layers: int) -> None:
        prometheus_client.disable_created_metrics()
        self._num_layers = num_layers
        self._registry = CollectorRegistry()
        self.requests = self._counter("te_request_count", "Requests", "method")
        self.successes = self._counter("te_request_success", "Requests answered", "method")
        self.failures = self._counter("te_request_failure", "Requests refused", "err")
        self.duration = self._seconds("te_request_duration", "Of a request")
        self.tokenization = self._seconds("te_request_tokenization_duration", "Of tokenizing")
        self.queue = self._seconds("te_request_queue_duration", "Of waiting for a batch")
        self.inference = self._seconds("te_request_inference_duration", "In batches")
        self._rows = self._counter("te_predict_count", "Rows that were run")
        self._answered = self._counter("te_predict_success", "Rows that were answered")
        self._row_seconds = self._seconds("te_predict_duration", "Of a request's rows")
        self.lengths = self._sizes("te_request_input_length", "Tokens of a row")
        self._queued_rows = self._gauge("te_queue_size", "Rows that wait")
        self._queued_tokens = self._gauge("ce_queue_tokens", "Tokens that wait")
        self._batch_rows = self._sizes("te_batch_next_size", "Rows of a batch")
        self._batch_tokens = self._sizes("te_batch_next_tokens", "Tokens of a batch")
        self._level = self._gauge("ce_level", "0 for the level asked for, more for faster ones")
        layers = [float(layer) for layer in range(1, num_layers + 1)]
        self._exits = Histogram(
            "ce_exit_layer", "Layers a row ran", buckets=layers, registry=self._registry
        )
        self._work = self._counter("ce_token_layers", "Tokens times layers", "kind")
        self._cut = self._counter("ce_deadline_exits", "Rows that left for their deadline")
        self._drops = self._counter("ce_dropped_rows", "Rows not run", "reason")
        self.exit_counts: Counter[int] = Counter()
        self.started = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque()

    def batch(self, rows: int, tokens: int) -> None:
        """A batch begins."""
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._batch_tokens.observe(tokens)

    def answers(self, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        """These rows left."""
        ran = saved = cut = 0
        for row, answer in zip(rows, answers, strict=True):
            self._exits.observe(answer.exit_layer)
            ran += len(row.ids) * answer.exit_layer
            saved += len(row.ids) * (self._num_layers - answer.exit_layer)
            cut += answer.at_deadline
        self._work.labels("computed").inc(ran)
        self._work.labels("saved").inc(saved)
        self._cut.inc(cut)
        self.exit_counts.update(answer.exit_layer for answer in answers)
        now = time.monotonic()
        self._recent.append((now, len(answers)))
        while self._recent[0][0] < now - RECENT_SECONDS:
            self._recent.popleft()

    def predicted(self, rows: int, seconds: float) -> None:
        """These rows of one request were answered."""
        self._answered.inc(rows)
        self._row_seconds.observe(seconds)

    def state(self, queued_rows: int, queued_tokens: int, level: int) -> None:
        """The queue and the level now."""
        self._queued_rows.set(queued_rows)
        self._queued_tokens.set(queued_tokens)
        self._level.set(level)

    def dropped(self, reason: str, rows: int) -> None:
        """Rows that were not run."""
        self._drops.labels(reason).inc(rows)

    def rows_a_second(self) -> float:
        """Over the last `RECENT_SECONDS`."""
        now = time.monotonic()
        rows = sum(rows for when, rows in list(self._recent) if when >= now - RECENT_SECONDS)
        return rows / min(RECENT_SECONDS, max(now - self.started, 1.0))

    def render(self) -> bytes:
        """Prometheus's text, of all workers where there are several."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        text = prometheus_client.generate_latest(registry)
        # The client library appends _total to a counter's name; the other server's have none.
        return re.sub(rb"\b(te_\w+)_total\b", rb"\1", text)

    def _counter(self, name: str, what: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(name, what, labels, registry=self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, registry=self._registry, multiprocess_mode="livesum")

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(name, f"{what}, seconds", buckets=SECONDS, registry=self._registry)

    def _sizes(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=SIZES, registry=self._registry)
