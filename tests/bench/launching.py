"""What a launch costs the control plane, where hypervisor, network and firewall are fakes."""

from __future__ import annotations

import statistics
import threading
import time

from tests.bench.fake_node import Client, FakeNode, wait_until
from tests.bench.figure import Figure, Figures, ms

_WAIT_S = 120
_SINGLE = 15
_BATCH = 100
_ROUNDS = 5
_CLIENTS, _PER_CLIENT = 4, 10


def measure(is_quick: bool) -> Figures:
    """Measure launches one after another, a hundred in one call, and from several clients."""
    single, batch, rounds = (3, 4, 1) if is_quick else (_SINGLE, _BATCH, _ROUNDS)
    per_client = 2 if is_quick else _PER_CLIENT
    with FakeNode() as node:
        node.start()
        client, watch = node.client(), node.watch()
        client.run(node.image.image_id)
        wait_until(lambda: watch.running() == 1, _WAIT_S)
        figures = {
            **_one_by_one(node, client, single, rounds),
            **_in_batches(node, client, batch, rounds),
            **_from_many(node, per_client, rounds),
        }
        client.close()
        watch.close()
    return figures


def _one_by_one(node: FakeNode, client: Client, count: int, rounds: int) -> Figures:
    watch = node.watch()
    latencies, spent = [], []
    for _ in range(rounds):
        before = node.cpu_s()
        for _ in range(count):
            began = time.monotonic()
            [instance_id] = client.run(node.image.image_id)
            wait_until(lambda: watch.is_running(instance_id), _WAIT_S, 0.001)  # noqa: B023
            latencies.append(time.monotonic() - began)
        spent.append(_settled_cpu_s(node, before) / count)
    watch.close()
    latencies.sort()
    return {
        "launch, one by one: CPU each": ms(min(spent), 15),
        "launch, one by one: POST to running, p50": ms(statistics.median(latencies)),
        "launch, one by one: POST to running, p95": ms(latencies[int(len(latencies) * 0.95)]),
    }


def _settled_cpu_s(node: FakeNode, before: float) -> float:
    """Return the CPU seconds since then, the last confirmations included.

    A report is confirmed and forgotten a moment after its instance is seen to run.
    """
    time.sleep(0.1)
    return node.cpu_s() - before


def _in_batches(node: FakeNode, client: Client, count: int, rounds: int) -> Figures:
    watch = node.watch()
    calls, spent, running = [], [], []
    for _ in range(rounds):
        there = watch.running()
        before, began = node.cpu_s(), time.monotonic()
        client.run(node.image.image_id, count)
        calls.append(time.monotonic() - began)
        wait_until(lambda: watch.running() == there + count, _WAIT_S)  # noqa: B023
        running.append(time.monotonic() - began)
        spent.append(_settled_cpu_s(node, before) / count)
    watch.close()
    return {
        "RunInstances of 100: the call": ms(statistics.median(calls), 1000),
        "RunInstances of 100: until all run": ms(statistics.median(running)),
        "RunInstances of 100: CPU each": ms(min(spent), 15),
    }


def _from_many(node: FakeNode, per_client: int, rounds: int) -> Figures:
    """Launch from several clients at once, each its next as soon as the one before was accepted."""
    watch = node.watch()

    def launch() -> None:
        client = node.client()
        for _ in range(per_client):
            client.run(node.image.image_id)
        client.close()

    count = _CLIENTS * per_client
    rates, spent = [], []
    for _ in range(rounds):
        there = watch.running()
        threads = [threading.Thread(target=launch) for _ in range(_CLIENTS)]
        before, began = node.cpu_s(), time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: watch.running() == there + count, _WAIT_S)  # noqa: B023
        rates.append(count / (time.monotonic() - began))
        spent.append(_settled_cpu_s(node, before) / count)
    watch.close()
    return {
        "launch, four clients: launches per second": Figure(
            round(statistics.median(rates), 1), "1/s"
        ),
        "launch, four clients: CPU each": ms(min(spent), 15),
    }
