"""The metrics of all workers of `serve --workers N`, gathered by their parent under one port.

Each sample has the label `worker` beside its own: sums are left to Prometheus, which also knows
what it means when the counters of one worker begin anew.
"""

import http.client
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LOOPBACK = "127.0.0.1"
_TIMEOUT_S, _READY_TIMEOUT_S = 2.0, 0.7  # probes wait for a second


class WorkerMetrics(Collector):
    def __init__(self, ports: Sequence[int]) -> None:
        """ports: of each worker's metrics on the loopback."""
        self._ports = ports

    def ready(self) -> bool:
        """Whether any of them takes calls."""
        return any(text is not None for text in self._all("/readyz", _READY_TIMEOUT_S))

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else the registry would collect to learn the names

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("pawprint_worker_up", "1 if it answers", labels=("worker",))
        merged: dict[str, Metric] = {}
        for index, text in enumerate(self._all("/metrics", _TIMEOUT_S)):
            up.add_metric((str(index),), float(text is not None))
            for family in text_string_to_metric_families(text or ""):
                if family.name.endswith("_created"):  # OpenMetrics has it within its counter
                    continue
                into = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                into.samples += [
                    sample._replace(labels={**sample.labels, "worker": str(index)})
                    for sample in family.samples
                ]
        yield up
        yield from merged.values()

    def _all(self, path: str, timeout_s: float) -> list[str | None]:
        """Of all at once: one that hangs holds up no other."""
        with ThreadPoolExecutor(len(self._ports)) as pool:
            return list(pool.map(lambda port: _get(port, path, timeout_s), self._ports))


def _get(port: int, path: str, timeout_s: float) -> str | None:
    """The body of a good answer; None where there is none."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return text if response.status == 200 else None
