"""What a launch costs the control plane, where hypervisor, network and firewall are fakes."""

from __future__ import annotations

import statistics
import threading
import time

from tests.bench.fake_node import Client, FakeNode, wait_until
from tests.bench.figure import Figure, Figures, ms

_WAIT_S = 120
_SINGLE = 60
_BATCH = 100
_BATCHES = 5
_CLIENTS, _PER_CLIENT = 4, 40


def measure(is_quick: bool) -> Figures:
    """Measure launches one after another, a hundred in one call, and from several clients."""
    single, batch, batches = (3, 4, 1) if is_quick else (_SINGLE, _BATCH, _BATCHES)
    per_client = 2 if is_quick else _PER_CLIENT
    with FakeNode() as node:
        node.start()
        client, watch = node.client(), node.watch()
        client.run(node.image.image_id)
        wait_until(lambda: watch.running() == 1, _WAIT_S)
        figures = {
            **_one_by_one(node, client, single),
            **_in_batches(node, client, batch, batches),
            **_from_many(node, per_client),
        }
        client.close()
        watch.close()
    return figures


def _one_by_one(node: FakeNode, client: Client, count: int) -> Figures:
    watch = node.watch()
    latencies = []
    before = node.cpu_s()
    for _ in range(count):
        began = time.monotonic()
        [instance_id] = client.run(node.image.image_id)
        wait_until(lambda: watch.is_running(instance_id), _WAIT_S, 0.001)  # noqa: B023
        latencies.append(time.monotonic() - began)
    # The last report is confirmed and forgotten a moment after the instance is seen to run.
    time.sleep(0.1)
    spent = node.cpu_s() - before
    watch.close()
    latencies.sort()
    return {
        "launch, one by one: CPU each": ms(spent / count, 15),
        "launch, one by one: POST to running, p50": ms(statistics.median(latencies)),
        "launch, one by one: POST to running, p95": ms(latencies[int(len(latencies) * 0.95)]),
    }


def _in_batches(node: FakeNode, client: Client, count: int, batches: int) -> Figures:
    watch = node.watch()
    calls, spent, running = [], [], []
    for _ in range(batches):
        there = watch.running()
        before, began = node.cpu_s(), time.monotonic()
        client.run(node.image.image_id, count)
        calls.append(time.monotonic() - began)
        wait_until(lambda: watch.running() == there + count, _WAIT_S)  # noqa: B023
        running.append(time.monotonic() - began)
        time.sleep(0.1)
        spent.append((node.cpu_s() - before) / count)
    watch.close()
    return {
        "RunInstances of 100: the call": ms(statistics.median(calls), 1000),
        "RunInstances of 100: until all run": ms(statistics.median(running)),
        "RunInstances of 100: CPU each": ms(statistics.median(spent), 15),
    }


def _from_many(node: FakeNode, per_client: int) -> Figures:
    """Launch from several clients at once, each its next as soon as the one before was accepted."""
    watch = node.watch()
    there = watch.running()

    def launch() -> None:
        client = node.client()
        for _ in range(per_client):
            client.run(node.image.image_id)
        client.close()

    threads = [threading.Thread(target=launch) for _ in range(_CLIENTS)]
    before, began = node.cpu_s(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = _CLIENTS * per_client
    wait_until(lambda: watch.running() == there + count, _WAIT_S)
    took, spent = time.monotonic() - began, node.cpu_s() - before
    watch.close()
    return {
        "launch, four clients: launches per second": Figure(round(count / took, 1), "1/s"),
        "launch, four clients: CPU each": ms(spent / count, 15),
    }
