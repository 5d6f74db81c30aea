"""Prometheus metrics of RPCs: their counts and times."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BOUNDS = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5),
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the histogram, in seconds."""


class MethodStats:
    """The calls of one method in this process.

    Attributes:
        method: bare name of the RPC.
        codes: number of calls by the name of their gRPC status code.
        seconds: sum of their times.
        buckets: number of calls by time; the last one is of those above `BOUNDS`.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.codes: Counter[str] = Counter()
        self.seconds = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)

    def count(self, code: str, seconds: float) -> None:
        """Counts a call by the name of its gRPC status code, such as OK, and its time."""
        self.codes[code] += 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1


class RpcStats:
    """The calls of all methods in this process."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodStats] = {}

    def of(self, method: str) -> MethodStats:
        """Returns the calls of a method, by its bare name."""
        return self._methods.setdefault(method, MethodStats(method))

    def __iter__(self) -> Iterator[MethodStats]:
        return iter(list(self._methods.values()))


class _Rpcs(Collector):
    """A collector that reads the counts at each scrape, so that counting is cheap."""

    stats = RpcStats()

    def collect(self) -> Iterable[Metric]:
        counts = CounterMetricFamily("recparams_rpcs", "Calls", labels=["method", "code"])
        times = HistogramMetricFamily(
            "recparams_rpc_seconds",
            "Time in the handler; of streams, to their end",
            labels=["method"],
        )
        for method in self.stats:
            for code, count in list(method.codes.items()):
                counts.add_metric([method.method, code], count)
            bounds = [*map(str, BOUNDS), "+Inf"]
            times.add_metric(
                [method.method],
                list(zip(bounds, map(float, accumulate(method.buckets)), strict=True)),
                method.seconds,
            )
        yield counts
        yield times


_RPCS = _Rpcs()
REGISTRY.register(_RPCS)


def set_rpc_stats(stats: RpcStats) -> None:
    """Sets the counts that scrapes read."""
    _RPCS.stats = stats
