"""Three nodes on fakes: every port answers, roles move while they work, a role's node dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.fakes import (
    ALL_ROLES,
    HYPERVISOR_ROLES,
    FakeCluster,
    running,
)
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import Broker


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, rabbitmq: Broker
) -> Iterator[FakeCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with running(folder, postgresql, rabbitmq.new_vhost()) as made:
        made.add("n1", roles=ALL_ROLES)
        made.add("n2", roles=("controller", "scheduler", "network", *HYPERVISOR_ROLES))
        made.add("n3", roles=HYPERVISOR_ROLES, zone="local-1b")
        made.start()
        yield made


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
def test_every_port_launches_and_describes(cluster: FakeCluster, name: str) -> None:
    node = cluster[name]
    ids = cluster.launch(2, via=node)
    cluster.wait_state("running", *ids, via=node)
    node.client().terminate_instances(InstanceIds=ids)
    cluster.wait_state("terminated", *ids, via=node)
