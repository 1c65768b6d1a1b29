"""How long the built-in schedulers take: ``python tests/bench/bench_scheduler.py``.

Prints one JSON object a line; CPU time of the calling thread, facade and checks included.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from appliance.hooks import Scheduler
from appliance.plugin_loader import PluginLoader
from appliance.testing.nodes import ZONES, make_cluster, make_request

ROUNDS = 30


def measure(scheduler: Scheduler, nodes: int, zone: str | None) -> dict[str, object]:
    """Return the figures of one scheduler on one cluster."""
    cluster = make_cluster(nodes)
    cpu_ms = []
    largest = 0
    for seed in range(ROUNDS):
        request = make_request(seed=seed, zone=zone, excluded_node_ids=(cluster[0].node_id,))
        before = time.thread_time()
        ranking = scheduler.rank(request, cluster)
        cpu_ms.append((time.thread_time() - before) * 1000)
        largest = max(largest, len(msgspec.json.encode(ranking)))
    return {
        "scheduler": scheduler.name,
        "nodes": nodes,
        "zone": zone,
        "cpu_ms_median": round(statistics.median(cpu_ms), 2),
        "cpu_ms_worst": round(max(cpu_ms), 2),
        "record_bytes": largest,
    }


def main() -> None:
    """Print the figures of all built-in schedulers."""
    with tempfile.TemporaryDirectory() as folder:
        loader = PluginLoader(
            node_name="bench",
            state_dir=Path(folder),
            run_dir=Path(folder),
            settings=lambda group, name: {},
        )
        for name in ("chance", "zone", "simple", "filter"):
            scheduler = Scheduler(name, loader.create("appliance.scheduler", name))
            for nodes in (100, 1000, 10_000):
                for zone in (None, ZONES[0]):
                    print(json.dumps(measure(scheduler, nodes, zone)))


if __name__ == "__main__":
    main()
