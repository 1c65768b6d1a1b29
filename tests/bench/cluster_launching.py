"""What a launch costs a cluster: three control nodes, and compute nodes that are simulated."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import replace

from tests.bench.fake_cluster import Cpu, Place, place, settle
from tests.bench.fake_node import wait_until
from tests.bench.figure import Figure, Figures, ms
from tests.cluster.swarm import Swarm, swarm_of

_WAIT_S = 120
_CONTROL = 3
_SWARM = 100
_IDLE_S = 10.0
_SINGLE = 30
_CLIENTS, _PER_CLIENT = 6, 20
_ROUNDS = 4


def measure(is_quick: bool) -> Figures:
    """Measure launches one after another, and from several clients at several nodes at once."""
    with place() as here:
        here.add_control_nodes(_CONTROL)
        swarm = swarm_of(here.cluster, 2 if is_quick else _SWARM)
        names = [f"s{number}" for number in range(1, (2 if is_quick else _SWARM) + 1)]
        here.cluster.start()
        try:
            swarm.start()
            here.cluster.wait_known(*names)
            return _Launches(here, swarm, is_quick).measure()
        finally:
            swarm.stop()


class _Launches:
    def __init__(self, here: Place, swarm: Swarm, is_quick: bool) -> None:
        self._here = here
        self._swarm = swarm
        self._is_quick = is_quick
        self._watch = here.watch()
        self._nodes = list(here.cluster.nodes.values())
        self._idle = Cpu(control=0.0, broker=0.0, database=0.0)

    def measure(self) -> Figures:
        """Measure all, and leave the watch closed."""
        self._warm_up()
        figures = {**self._of_idleness(), **self._one_by_one(), **self._from_many()}
        self._watch.close()
        return figures

    def _cpu(self) -> Cpu:
        return replace(self._here.cpu(), compute=self._swarm.cpu_s)

    def _warm_up(self) -> None:
        for node in self._nodes:
            client = self._here.client(node)
            [one] = client.run(self._here.cluster.image_id)
            wait_until(lambda: self._watch.is_running(one), _WAIT_S)  # noqa: B023
            client.close()
        settle()

    def _of_idleness(self) -> Figures:
        seconds = 1.0 if self._is_quick else _IDLE_S
        before, began = self._cpu(), time.monotonic()
        time.sleep(seconds)
        used, elapsed = self._cpu().since(before), time.monotonic() - began
        self._idle = Cpu(
            control=used.control / elapsed,
            broker=used.broker / elapsed,
            database=used.database / elapsed,
            compute=used.compute / elapsed,
        )
        shares = {"control nodes": self._idle.control, "compute nodes": self._idle.compute}
        shares |= {"broker": self._idle.broker, "database": self._idle.database}
        return {
            f"idle cluster: CPU of the {who}, of one core": Figure(round(share * 100, 2), "%")
            for who, share in shares.items()
        }

    def _spent(self, before: Cpu, began: float, count: int) -> Cpu:
        """Return what each of so many launches took, without what idleness takes meanwhile."""
        settle(0.1 if self._is_quick else 1.0)
        elapsed, used = time.monotonic() - began, self._cpu().since(before)
        return Cpu(
            control=(used.control - self._idle.control * elapsed) / count,
            broker=(used.broker - self._idle.broker * elapsed) / count,
            database=(used.database - self._idle.database * elapsed) / count,
            compute=(used.compute - self._idle.compute * elapsed) / count,
        )

    def _one_by_one(self) -> Figures:
        """Launch by turns at each node, the next when the one before runs."""
        count = 3 if self._is_quick else _SINGLE
        clients = [self._here.client(node) for node in self._nodes]
        latencies = []
        before, first = self._cpu(), time.monotonic()
        for number in range(count):
            began = time.monotonic()
            [one] = clients[number % len(clients)].run(self._here.cluster.image_id)
            wait_until(lambda: self._watch.is_running(one), _WAIT_S, 0.002)  # noqa: B023
            latencies.append(time.monotonic() - began)
        spent = self._spent(before, first, count)
        for client in clients:
            client.close()
        latencies.sort()
        return {
            "cluster, one by one: POST to running, p50": ms(statistics.median(latencies)),
            "cluster, one by one: POST to running, p95": ms(latencies[int(count * 0.95)]),
            "cluster, one by one: CPU each": ms(spent.control + spent.compute),
        }

    def _from_many(self) -> Figures:
        per_client = 2 if self._is_quick else _PER_CLIENT
        count = _CLIENTS * per_client

        def launch(number: int) -> None:
            client = self._here.client(self._nodes[number % len(self._nodes)])
            for _ in range(per_client):
                client.run(self._here.cluster.image_id)
            client.close()

        rates, spent = [], []
        for _ in range(1 if self._is_quick else _ROUNDS):
            there = self._watch.running()
            threads = [threading.Thread(target=launch, args=(n,)) for n in range(_CLIENTS)]
            before, began = self._cpu(), time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wait_until(lambda: self._watch.running() == there + count, _WAIT_S, 0.05)  # noqa: B023
            rates.append(count / (time.monotonic() - began))
            spent.append(self._spent(before, began, count))
        least = min(spent, key=lambda one: one.control + one.compute)
        return {
            "cluster, six clients: launches per second": Figure(
                round(statistics.median(rates), 1), "1/s"
            ),
            "cluster, six clients: CPU each": ms(least.control + least.compute, 25),
            "cluster, six clients: CPU each, control nodes": ms(least.control),
            "cluster, six clients: CPU each, compute nodes": ms(least.compute),
            "cluster, six clients: CPU each, broker": ms(least.broker),
            "cluster, six clients: CPU each, database": ms(least.database),
        }
