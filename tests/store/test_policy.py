"""Differences of policy: whatever happens in whatever order, they add up to the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from appliance.firewall.policy import apply_delta
from appliance.messages import GetPolicy, PolicyChanged, node_topic
from appliance.model import NetworkPolicy
from appliance.store import (
    Announcement,
    Transaction,
    attributes,
    confirmations,
    groups,
    networks,
    placements,
    policy,
)
from appliance.store import instances as instance_rows
from appliance.store.groups import Group, Match
from tests.store.conftest import Site, claim_room, make_site

NODES = ("a", "b")


def meaning(known: NetworkPolicy, needed: set[str]) -> object:
    """Return what a policy says, whatever the order; groups that nobody needs left out."""
    ports = {port.port_id: port for port in known.ports}
    said = {
        group.group_id: (
            frozenset(group.ingress),
            frozenset(group.egress),
            frozenset(group.members),
        )
        for group in known.groups
        if group.group_id in needed
    }
    return ports, said


class Policies(RuleBasedStateMachine):
    """Instances come and go, rules change, and two nodes ask for the difference now and then."""

    found = Bundle("groups")
    launched = Bundle("instances")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.site = make_site(f"sqlite:///{self.folder.name}/store.sqlite")
        self.node_ids = [self.site.add_node(name) for name in NODES]
        self.known: dict[str, NetworkPolicy] = {}
        self.count = 0

    def teardown(self) -> None:
        self.site.store.close()
        self.folder.cleanup()

    def default_group(self) -> str:
        return self.site.group_id

    @rule(target=found)
    def make_group(self) -> Group:
        self.count += 1
        site = self.site
        return site.store.transaction(
            lambda tx: groups.create(tx, site.project_id, site.vpc_id, f"g{self.count}", "a group")
        )

    @rule(group=found, source=found, port=st.integers(1, 3))
    def add_rule(self, group: Group, source: Group, port: int) -> None:
        match = Match(protocol=6, from_port=port, to_port=port, source_group_id=source.group_id)

        def add(tx: Transaction) -> None:
            existing = groups.rules_of(tx, [group.group_id]).get(group.group_id, [])
            if match not in [one.match for one in existing]:
                groups.add_rules(tx, group, is_egress=False, rules=[(match, "")])

        self.site.store.transaction(add)

    @rule(group=found)
    def remove_rule(self, group: Group) -> None:
        def remove(tx: Transaction) -> None:
            existing = groups.rules_of(tx, [group.group_id]).get(group.group_id, [])
            groups.remove_rules(tx, group, [one.rule_id for one in existing[:1]])

        self.site.store.transaction(remove)

    @rule(target=launched, group=found, node=st.sampled_from((0, 1)), also_default=st.booleans())
    def launch(self, group: Group, node: int, also_default: bool) -> str:
        chosen = (group.group_id, *((self.default_group(),) if also_default else ()))

        def write(tx: Transaction) -> str:
            (instance_id,) = self.site.launch(tx, group_ids=chosen)
            node_id = self.node_ids[node]
            assert claim_room(tx, instance_id, 1, node_id)
            instance_rows.placed(tx, [(instance_id, 1, node_id)])
            assert placements.commit(tx, instance_id, 1, node_id)
            self.site.bind(tx, instance_id)
            return instance_id

        return self.site.store.transaction(write)

    @rule(instance_id=launched, group=found, also_default=st.booleans())
    def change_groups(self, instance_id: str, group: Group, also_default: bool) -> None:
        chosen = [group.group_id, *([self.default_group()] if also_default else ())]
        self.site.store.transaction(lambda tx: attributes.set_groups(tx, instance_id, chosen))

    @rule(instance_id=consumes(launched))
    def terminate(self, instance_id: str) -> None:
        def end(tx: Transaction) -> None:
            placement = placements.active(tx, instance_id)
            instance = instance_rows.get(tx, instance_id)
            assert placement
            assert instance
            placements.end(tx, placement, "gone")
            assert instance_rows.terminated(tx, instance, None)

        self.site.store.transaction(end)

    @rule(node=st.sampled_from((0, 1)))
    def ask(self, node: int) -> None:
        self.refresh(self.node_ids[node])

    def refresh(self, node_id: str) -> NetworkPolicy:
        known = self.known.get(node_id)
        question = GetPolicy(
            node_id=node_id,
            network_id=self.site.network_id,
            known_revision=known.revision if known else -1,
            known_group_ids=tuple(group.group_id for group in known.groups) if known else (),
        )
        self.site.store.transaction(lambda tx: confirmations.confirm(tx, question))
        answer = self.site.store.read(
            lambda tx: policy.answer(tx, question, confirmations.standing(tx, question))
        )
        if answer.policy is not None:
            self.known[node_id] = answer.policy
        elif answer.delta is not None:
            assert known
            self.known[node_id] = apply_delta(known, answer.delta)
        return self.known[node_id]

    @invariant()
    def differences_add_up(self) -> None:
        # Now and then only: an invariant that asks each time would never see a long difference.
        if self.count % 3:
            return
        for node_id in self.node_ids:
            whole = self.site.store.read(
                lambda tx, n=node_id: policy.whole(tx, self.site.network_id, n)  # type: ignore[misc]
            )
            needed = {group.group_id for group in whole.groups}
            assert meaning(self.refresh(node_id), needed) == meaning(whole, needed)


TestPolicies = Policies.TestCase
TestPolicies.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    # Each step writes to a disk: a failure is shown as it was found, or it would take minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


def test_news_go_to_the_nodes_that_hold_ports(site: Site) -> None:
    holder, former, stranger = (site.add_node(name) for name in ("holder", "former", "stranger"))

    def launch(tx: Transaction, node_id: str) -> str:
        (instance_id,) = site.launch(tx)
        assert claim_room(tx, instance_id, 1, node_id)
        instance_rows.placed(tx, [(instance_id, 1, node_id)])
        assert placements.commit(tx, instance_id, 1, node_id)
        site.bind(tx, instance_id)
        return instance_id

    def prepare(tx: Transaction) -> None:
        launch(tx, holder)
        launch(tx, holder)
        placement = placements.active(tx, launch(tx, former))
        assert placement
        placements.end(tx, placement, "gone")

    def change(tx: Transaction) -> list[Callable[[Transaction], Announcement]]:
        policy.group_changed(tx, site.vpc_id, site.group_id)
        return list(tx.news.values())

    site.store.transaction(prepare)
    [read] = site.store.transaction(change)
    announcement = site.store.read(read)
    [(topic, news)] = announcement.messages
    _, revision = site.store.read(lambda tx: networks.with_revision(tx, site.network_id))
    assert isinstance(news, PolicyChanged)
    assert topic == node_topic("datapath", holder)
    assert (news.network_id, news.revision) == (site.network_id, revision)
    assert news.rest_s == announcement.rest_s == 0.0, "somebody relies on a rule"

    def join(tx: Transaction) -> Callable[[Transaction], Announcement]:
        policy.changed(tx, site.vpc_id, [policy.Change(kind="joined", subject=site.group_id)])
        [read] = tx.news.values()
        return read

    announcement = site.store.read(site.store.transaction(join))
    [(topic, news)] = announcement.messages
    assert isinstance(news, PolicyChanged)
    assert topic == node_topic("datapath", holder)
    assert 0 < announcement.rest_s < news.rest_s
    assert stranger in site.node_ids
