"""The engine's own figures for Prometheus, as it last told them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from graft_server.engine.base import LOAD_SECONDS
from graft_server.engine.stats_cache import StatsCache
from graft_server.metrics.buckets import Buckets


class EngineFigures(Collector):
    """What is in a ``StatsCache``: a scrape never asks the engine. Counters begin again when the engine is rebuilt."""

    def __init__(self, cache: StatsCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        stats = self._cache.latest
        for name, documentation, gauge in (
            (
                "engine_tokens_per_second",
                "Tokens generated a second, over the last ten seconds.",
                stats.tokens_per_second,
            ),
            ("engine_running", "Sequences that the engine computes.", stats.running),
            ("engine_waiting", "Sequences that wait in the engine: for memory, or for their adapter.", stats.waiting),
            ("kv_blocks", "Blocks of the KV cache.", stats.kv_blocks_total),
            ("kv_blocks_used", "Blocks of the KV cache that sequences in progress hold.", stats.kv_blocks_used),
            ("slots", "Adapter slots in device memory.", stats.slots),
            ("slots_used", "Adapter slots that hold an adapter.", len(stats.loaded)),
            (
                "engine_stats_age_seconds",
                "Seconds since the engine told these figures; it grows while the engine hangs.",
                self._cache.age,
            ),
        ):
            yield GaugeMetricFamily(f"graft_{name}", documentation, gauge)
        for name, documentation, counter in (
            ("engine_generated_tokens", "Tokens that the engine generated.", stats.generated_tokens),
            ("preemptions", "Sequences that gave their memory back and were computed again.", stats.preemptions),
            ("prefix_reused_tokens", "Prompt tokens found in the KV cache instead of computed.", stats.reused_tokens),
            ("slot_evictions", "Adapters that left their slot for another one.", stats.evictions),
        ):
            yield CounterMetricFamily(f"graft_{name}", documentation, counter)
        loads = Buckets(LOAD_SECONDS, stats.load_counts or None, stats.load_seconds)
        yield HistogramMetricFamily(
            "graft_load_seconds",
            "Seconds that an adapter took to be read into host memory.",
            list(loads.cumulative()),
            loads.sum,
        )
