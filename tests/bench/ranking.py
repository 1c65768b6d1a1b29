"""How long the built-in schedulers take to rank nodes, facade and checks included."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import msgspec

from appliance.hooks import Scheduler
from appliance.plugin_loader import PluginLoader
from appliance.testing.nodes import make_cluster, make_request
from tests.bench.figure import Figure, Figures, ms

_NODES = 10_000
_ROUNDS = 15


def measure(is_quick: bool) -> Figures:
    """Measure each scheduler's CPU time and the size of its record on ten thousand nodes."""
    cluster = make_cluster(100 if is_quick else _NODES)
    rounds = 1 if is_quick else _ROUNDS
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        loader = PluginLoader(
            node_name="bench",
            state_dir=Path(folder),
            run_dir=Path(folder),
            settings=lambda group, name: {},
        )
        for name in ("filter", "simple", "zone", "chance"):
            scheduler = Scheduler(name, loader.create("appliance.scheduler", name))
            spent, record_bytes = [], 0
            for seed in range(rounds):
                request = make_request(seed=seed, excluded_node_ids=(cluster[0].node_id,))
                before = time.thread_time()
                ranking = scheduler.rank(request, cluster)
                spent.append(time.thread_time() - before)
                record_bytes = max(record_bytes, len(msgspec.json.encode(ranking)))
            figures[f"{name} ranks 10,000 nodes: CPU"] = ms(min(spent), 20)
            figures[f"{name} ranks 10,000 nodes: record"] = Figure(record_bytes, "byte", 16_384)
    return figures
