"""What DescribeInstances costs a node that has many instances, through HTTP and signature."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from appliance.instance_types import CATALOG
from appliance.store import Transaction, groups, instances, launches, networks
from appliance.store.launches import Launch, RootDisk
from tests.bench.fake_node import FakeNode
from tests.bench.figure import Figures, ms

_ROUNDS = 5
_LISTED, _PRESENT = 1_000, 10_000
_BULK = 1_000


def measure(is_quick: bool) -> Figures:
    """Measure a list of a thousand, then one instance among ten thousand."""
    listed, present, repeats = (10, 20, 1) if is_quick else (_LISTED, _PRESENT, 20)
    # Only the front door: nobody looks after instances that are only records.
    with FakeNode(roles=("api",)) as node:
        _fill(node, listed)
        node.start()
        client = node.client()
        page = client("DescribeInstances")
        assert page.count("<instanceState>") == listed
        whole = _least_cpu_s(node, lambda: client("DescribeInstances"))
        paged = _least_cpu_s(node, lambda: client("DescribeInstances", MaxResults=100))
        client.close()
        some_id = _fill(node, present - listed)
        client = node.client()

        def ask_for_one() -> None:
            for _ in range(repeats):
                client("DescribeInstances", InstanceId_1=some_id)

        one = _least_cpu_s(node, ask_for_one) / repeats
        client.close()
    return {
        "DescribeInstances of 1,000: CPU": ms(whole, 100),
        "DescribeInstances, a page of 100 of 1,000: CPU": ms(paged),
        "DescribeInstances of one by id among 10,000: CPU": ms(one, 5),
    }


def _least_cpu_s(node: FakeNode, work: Callable[[], object]) -> float:
    work()
    spent = []
    for _ in range(_ROUNDS):
        before = node.cpu_s()
        work()
        spent.append(node.cpu_s() - before)
    return min(spent)


def _fill(node: FakeNode, count: int) -> str:
    """Write instances that run, as launches and reports would have; return the id of one."""
    ids: list[str] = []
    while len(ids) < count:
        bulk = min(_BULK, count - len(ids))
        ids += node.store.transaction(lambda tx: _write(tx, node, bulk))  # noqa: B023
    return ids[len(ids) // 2]


def _write(tx: Transaction, node: FakeNode, count: int) -> list[str]:
    network_id, vpc_id = networks.default_in_zone(tx, None), networks.default_vpc(tx)
    assert network_id
    assert vpc_id
    kind = CATALOG["t2.nano"]
    launch = Launch(
        project_id=node.project_id,
        request_id=tx.world.ids.uuid(),
        request_hash="",
        client_token=None,
        min_count=count,
        count=count,
        image=node.image,
        kernel_id=None,
        ramdisk_id=None,
        instance_type=kind,
        root_disk=RootDisk(
            device_name="/dev/vda", disk_gib=kind.disk_gib, delete_on_termination=True
        ),
        zone=None,
        network_id=network_id,
        group_ids=[groups.default(tx, node.project_id, vpc_id).group_id],
        key_name=None,
        public_key="",
        user_data_base64="",
        attributes={},
        tags={"instance": {"Name": "bench", "env": "figures"}},
        node="bench",
        started_at=tx.now,
        duration_ms=1.0,
    )
    launches.write(tx, launch)
    place = tx.casts.pop()
    ids: list[str] = msgspec.json.decode(place.body)["instance_ids"]
    for instance_id in ids:
        instances.bind(tx, instance_id, 1, region="local-1", quarantine_s=0.0)
        instances.reported(tx, instance_id, 0, 1, {"state": "running", "launched_at": tx.now})
    return ids
