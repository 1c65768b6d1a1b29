"""The list of benchmarks. What one needs is imported when it is run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tests.bench.figure import Benchmark, Figures

_NAMESPACES = ("nft", "conntrack")
_NODE = (
    *("unshare", "nsenter", "ip", "nft", "dnsmasq"),
    *("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img"),
)
_SERVICES = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), Path("/usr/lib/postgresql"))
_IMAGE = Path("/var/cache/anynode/demo-image/root.qcow2")


def _of(module: str) -> Callable[[bool], Figures]:
    def measure(is_quick: bool) -> Figures:
        figures: Figures = import_module(f"tests.bench.{module}").measure(is_quick)
        return figures

    return measure


BENCHMARKS = (
    Benchmark(
        name="launching",
        what="launches through the API on fakes of hypervisor, network and firewall",
        measure=_of("launching"),
    ),
    Benchmark(
        name="describing",
        what="DescribeInstances of many, and of one among many",
        measure=_of("describing"),
    ),
    Benchmark(
        name="ranking",
        what="the schedulers on ten thousand nodes",
        measure=_of("ranking"),
    ),
    Benchmark(
        name="protocol",
        what="reading requests and writing replies",
        measure=_of("protocol"),
    ),
    Benchmark(
        name="stores",
        what="transactions on SQLite and on a PostgreSQL of its own",
        measure=_of("stores"),
        needs_root=True,
        files=(Path("/usr/lib/postgresql"),),
    ),
    Benchmark(
        name="messages",
        what="questions and casts through RabbitMQ",
        measure=_of("messages"),
        programs=("epmd",),
        files=(Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),),
    ),
    Benchmark(
        name="cluster-launching",
        what="launches by three control nodes on simulated compute nodes",
        measure=_of("cluster_launching"),
        needs_root=True,
        programs=("epmd",),
        files=_SERVICES,
    ),
    Benchmark(
        name="cluster-takeover",
        what="launches by others when the only process of a node's roles is killed",
        measure=_of("takeover"),
        needs_root=True,
        programs=("epmd",),
        files=_SERVICES,
    ),
    Benchmark(
        name="cluster-heartbeats",
        what="the heartbeats of a thousand nodes",
        measure=_of("heartbeats"),
        needs_root=True,
        programs=("epmd",),
        files=_SERVICES,
    ),
    Benchmark(
        name="firewall-changes",
        what="instances and rules more and less, in a namespace",
        measure=_of("firewall_changes"),
        needs_root=True,
        programs=_NAMESPACES,
    ),
    Benchmark(
        name="firewall-packets",
        what="packets between two taps with and without our rules, in namespaces",
        measure=_of("firewall_packets"),
        needs_root=True,
        programs=_NAMESPACES,
    ),
    Benchmark(
        name="node",
        what="a real node in a rig: start, a minute of idleness, launches",
        measure=_of("real_node"),
        needs_root=True,
        programs=_NODE,
        files=(_IMAGE,),
    ),
    Benchmark(
        name="cluster-node",
        what="a real node with all roles in a cluster of two: memory, a minute of idleness",
        measure=_of("cluster_node"),
        needs_root=True,
        programs=(*_NODE, "epmd"),
        files=(_IMAGE, *_SERVICES),
    ),
)
