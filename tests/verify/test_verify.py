"""Everything that verify can find is found, and repaired where it may be; nothing else is."""

from __future__ import annotations

import base64
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import Table, delete, insert, update

from appliance import seal, verify
from appliance.compute.record import HELD, REPORT, Held, OwedReport
from appliance.compute.worker import Worker
from appliance.config import Config
from appliance.datapath.record import PORT, PortRecord
from appliance.errors import ConfigError
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.journal import Journal
from appliance.messages import Report
from appliance.model import NetworkPolicy, NetworkSpec, RemotePort, tap_name
from appliance.store import Transaction, identity
from appliance.store import facts as store_facts
from appliance.store.schema import (
    addresses,
    instances,
    node_claims,
    outbox,
    placements,
    quotas,
    timeline,
)
from appliance.verify import codes, node_facts
from appliance.verify.facts import open_store, read_store
from tests.chain.conftest import make_chain, quiet_deaths  # noqa: F401
from tests.chain.harness import PATIENCE, Chain
from tests.verify import test_cluster

STRANGER = "i-0fedcba9876543210"
STRANGER_PORT = "eni-0fedcba9876543210"


@pytest.fixture
def chain(make_chain: Callable[..., Chain]) -> Chain:  # noqa: F811
    """A node with one running and one stopped instance; its process has ended."""
    made = make_chain()
    running, stopped = made.run_instances(2)
    made.wait_for("running", running, stopped)
    made.stop_instances(stopped)
    made.wait_for("stopped", stopped)
    made.assert_clean()
    made.stop()
    assert codes_of(made) == {"N1.NOT_RUNNING"}
    return made


def codes_of(chain: Chain) -> set[str]:
    return {one.code for one in verify.check(chain.config, patience=PATIENCE)} - {"N3.NO_KVM"}


def ids(chain: Chain) -> dict[str, str]:
    facts = read_store(chain.config, store_facts.read)
    return {row.state.value: row.instance_id for row in facts.instances.values()}


def port_of(chain: Chain, instance_id: str) -> str:
    facts = read_store(chain.config, store_facts.read)
    return next(p.port_id for p in facts.ports.values() if p.instance_id == instance_id)


def write(chain: Chain, *statements: object) -> None:
    store = open_store(chain.config)

    def work(tx: Transaction) -> None:
        for statement in statements:
            tx.execute(statement)  # type: ignore[arg-type]

    store.transaction(work)
    store.close()


def set_in(chain: Chain, table: Table, **values: object) -> None:
    write(chain, update(table).values(**values))


def set_instance(chain: Chain, which: str, /, **values: object) -> None:
    write(chain, update(instances).where(instances.c.id == ids(chain)[which]).values(**values))


def in_journal(chain: Chain, name: str, work: Callable[[Journal], object]) -> None:
    journal = Journal(chain.config.state_dir / f"{name}.sqlite")
    work(journal)
    journal.close()


def held(chain: Chain, state: str) -> Held:
    journal = Journal(chain.config.state_dir / "compute.sqlite")
    found = journal.get(HELD, ids(chain)[state], Held)
    journal.close()
    assert found
    return found


def put_held(chain: Chain, which: str, /, **values: object) -> None:
    changed = replace(held(chain, which), **values)
    in_journal(chain, "compute", lambda journal: journal.put(HELD, changed.instance_id, changed))


def forget_held(chain: Chain, state: str) -> None:
    in_journal(chain, "compute", lambda journal: journal.delete(HELD, ids(chain)[state]))


def reach_of_nobody(chain: Chain) -> None:
    remote = RemotePort(
        port_id="", mac="06:a0:00:00:00:99", addresses=("10.64.0.99",), node_address="192.0.2.9"
    )
    chain.machine.network.node.remotes[chain.network_id] = {remote.port_id: remote}


def stranger_domain(chain: Chain) -> None:
    known = chain.machine.compute._instances[ids(chain)["running"]].definition
    chain.machine.compute.compute_define(replace(known, instance_id=STRANGER))
    chain.machine.compute.compute_start(STRANGER)


def stale_copy(chain: Chain) -> None:
    found = held(chain, "stopped")
    write(chain, delete(placements).where(placements.c.instance_id == found.instance_id))


def stranger_tap(chain: Chain) -> None:
    node = chain.machine.network.node
    known = next(iter(node.ports.values()))
    attached = replace(known.attached, port_id=STRANGER_PORT, tap=tap_name(STRANGER_PORT))
    node.ports[STRANGER_PORT] = replace(known, attached=attached)


def stranger_network(chain: Chain) -> None:
    node = chain.machine.network.node
    known = next(iter(node.networks.values()))
    node.networks["subnet-gone"] = known
    spec = NetworkSpec(
        network_id="subnet-gone",
        vpc_id=known.vpc_id,
        type="fake",
        cidr="10.9.0.0/24",
        gateway="10.9.0.1",
        bridge="gone0",
    )
    chain.machine.firewall.firewall_sync(NetworkPolicy(network=spec, revision=3))


def stranger_rules(chain: Chain) -> None:
    firewall = chain.machine.firewall
    (network_id,) = firewall._rules.policies
    policy = firewall._rules.policies[network_id]
    port = replace(policy.ports[0], port_id=STRANGER_PORT, tap=tap_name(STRANGER_PORT))
    firewall._rules.policies[network_id] = replace(policy, ports=(*policy.ports, port))


def no_rules(chain: Chain) -> None:
    firewall = chain.machine.firewall
    (network_id,) = firewall._rules.policies
    firewall._rules.policies[network_id] = replace(firewall._rules.policies[network_id], ports=())


def old_rules(chain: Chain) -> None:
    firewall = chain.machine.firewall
    (network_id,) = firewall._rules.policies
    firewall._rules.policies[network_id] = replace(firewall._rules.policies[network_id], revision=0)


def datapath_record(chain: Chain, port_id: str, **values: object) -> None:
    def change(journal: Journal) -> None:
        known = journal.get(PORT, port_of(chain, ids(chain)["running"]), PortRecord)
        assert known
        port = replace(known.port, port_id=port_id, **values)
        journal.put(PORT, port_id, replace(known, port=port))

    in_journal(chain, "datapath", change)


def stranger_files(chain: Chain) -> None:
    folder = chain.config.state_dir / "instances" / STRANGER
    folder.mkdir()
    (folder / "disk-0.qcow2").write_bytes(b"somebody's thesis")


def stray_address(chain: Chain) -> None:
    chosen = addresses.c.address == "10.64.0.77"
    write(chain, update(addresses).where(chosen).values(port_id=STRANGER_PORT))


def port_of_the_ended(chain: Chain) -> None:
    placed = placements.c.instance_id == ids(chain)["stopped"]
    write(chain, update(placements).where(placed).values(phase="gone"))
    set_instance(chain, "stopped", state="terminated", desired="terminated")


def owed_report(chain: Chain) -> None:
    report = Report(instance_id=STRANGER, node_id="n", epoch=1, seq=1, revision=1, state="gone")
    owed = OwedReport(report=report, sent_at=time.time() - 600)
    in_journal(chain, "compute", lambda journal: journal.put(REPORT, f"{STRANGER}@1", owed))
    chain.start()


def waiting_message(chain: Chain) -> None:
    row = {"id": "m1", "topic": "proxy.elsewhere", "lane": "", "kind": "Place", "body": b"{}"}
    write(chain, insert(outbox).values(**row, created_at=time.time() - 600))
    chain.start()


def dead_message(chain: Chain) -> None:
    row = {"id": "m1", "topic": "scheduler", "lane": "", "kind": "Place", "body": b"{}"}
    write(chain, insert(outbox).values(**row, created_at=1.0, dead_at=2.0, error="a bug"))


def refused_message(chain: Chain) -> None:
    row = {"id": "m1", "topic": "controller", "lane": "", "kind": "Report", "body": b"{}"}
    dead = {"created_at": 1.0, "dead_at": 2.0, "sender": "h-evil", "error": "It is not its own."}
    write(chain, insert(outbox).values(**row, **dead))


def secret_of_a_key(chain: Chain) -> str:
    keys = seal.load(seal.key_path(chain.config.state_dir))
    store = open_store(chain.config)

    def make(tx: Transaction) -> str:
        identity.create_user(tx, "ann")
        identity.join_project(tx, "ann", "alpha", "admin")
        _, secret = identity.create_access_key(tx, keys, "ann", "alpha")
        return secret

    secret = store.transaction(make)
    store.close()
    return secret


def secret_in_log(chain: Chain) -> None:
    log = chain.config.state_dir / "log"
    log.mkdir()
    path = log / "node.log"
    path.touch(mode=0o600)
    path.write_text("x" * (1 << 20) + f"signed with {secret_of_a_key(chain)}, alas\n")


def secret_in_timeline(chain: Chain) -> None:
    user_data = b"#!/bin/sh\necho the password is 4711 | passwd"
    encoded = base64.b64encode(user_data).decode()
    seal.load(seal.key_path(chain.config.state_dir))
    set_instance(chain, "running", user_data_base64=encoded)
    set_in(chain, timeline, detail=f"ran {user_data.decode()}")


def image_of_nobody(chain: Chain) -> None:
    path = chain.config.state_dir / "instances" / ids(chain)["running"] / "x"
    path.write_bytes(b"b" * 4096)
    store = ImageStore(chain.config.images_dir)
    stored = store.import_file(path, "raw", ImageLimits())
    path.unlink()
    os.utime(store.path(stored.sha256), (1.0, 1.0))


BROKEN: dict[str, Callable[[Chain], object]] = {
    "I1.NO_PROGRESS": lambda c: set_instance(c, "running", state="stopping", progress_at=1.0),
    "I1.NO_REASON": lambda c: set_instance(
        c, "stopped", state="terminated", desired="terminated", reason_code="", transition_reason=""
    ),
    "I2.DOMAIN_ORPHAN": stranger_domain,
    "I2.DOMAIN_STALE": stale_copy,
    "I2.DOMAIN_MISSING": lambda c: c.machine.compute.compute_remove(ids(c)["running"]),
    "I2.DOMAIN_OFF": lambda c: c.machine.compute.compute_power_off(ids(c)["running"]),
    "I2.DOMAIN_ON": lambda c: c.machine.compute.compute_start(ids(c)["stopped"]),
    "I2.EPOCH_DIFFERS": lambda c: put_held(c, "running", epoch=7),
    "I2.TWO_PLACEMENTS": lambda c: write(
        c,
        insert(placements).from_select(
            [one.name for one in placements.c],
            placements.select()
            .with_only_columns(*(one + 1 if one.name == "epoch" else one for one in placements.c))
            .where(placements.c.instance_id == ids(c)["running"]),
        ),
    ),
    "I2.NOT_PLACED": stale_copy,
    "I2.JOURNAL_MISSING": lambda c: forget_held(c, "running"),
    "I2.JOURNAL_DIFFERS": lambda c: put_held(c, "running", state="stopped"),
    "I3.ADDRESS_STRAY": stray_address,
    "I3.PORT_STRAY": port_of_the_ended,
    "I3.ADDRESS_MISSING": lambda c: set_in(c, addresses, port_id=None),
    "I3.TAP_MISSING": lambda c: c.machine.network.network_detach(port_of(c, ids(c)["running"])),
    "I3.LEASE_DIFFERS": lambda c: datapath_record(
        c, port_of(c, ids(c)["running"]), addresses=("10.64.0.99",)
    ),
    "I3.DATAPATH_MISSING": lambda c: in_journal(
        c, "datapath", lambda journal: journal.delete(PORT, port_of(c, ids(c)["running"]))
    ),
    "I3.DATAPATH_STRAY": lambda c: datapath_record(c, STRANGER_PORT, instance_id=STRANGER),
    "I3.RULES_MISSING": no_rules,
    "I3.RULES_STRAY": stranger_rules,
    "I3.RULES_BEHIND": old_rules,
    "I3.REACH_DIFFERS": reach_of_nobody,
    "I4.CLAIMS_DIFFER": lambda c: set_in(c, node_claims, vcpus_claimed=5, instances=9),
    "I4.OVERCOMMITTED": lambda c: set_in(c, node_claims, memory_mib=100),
    "I4.QUOTA_DIFFERS": lambda c: set_in(c, quotas, used=7),
    "I5.FILES_ORPHAN": stranger_files,
    "I5.PARTIAL_FILE": lambda c: (
        c.directory(ids(c)["running"]) / ".disk-0.qcow2.partial"
    ).write_bytes(b"half"),
    "I5.IMAGE_UNUSED": image_of_nobody,
    "I5.TAP_ORPHAN": stranger_tap,
    "I5.NETWORK_ORPHAN": stranger_network,
    "I6.MESSAGE_STUCK": waiting_message,
    "I6.DEAD_LETTER": dead_message,
    "I6.REFUSED": refused_message,
    "I9.FILE_OPEN": lambda c: (c.config.state_dir / "compute.sqlite").chmod(0o644),
    "I9.SECRET_SEEN": secret_in_log,
    "N1.UNREAD": lambda c: (c.config.state_dir / "compute.sqlite").write_bytes(b"no database"),
    "N2.UNGUARDED": lambda c: c.machine.firewall.firewall_withdraw(),
}
"""How to break each thing."""

ELSEWHERE = {
    "I5.PROCESS_ORPHAN": "needs a process",
    "I5.MOUNT_ORPHAN": "needs a mount",
    "I6.REPORT_UNCONFIRMED": "a report of a node that runs: below",
    "N1.NOT_RUNNING": "every test here",
    "N1.HIDDEN": "cli/test_sandbox.py",
    "N5.BROKER_ALARM": "test_services.py",
    "N5.MOVE_UNFINISHED": "test_services.py",
    "N5.BROKER_AWAY": "test_services.py",
    "N5.SERVICE_DOWN": "test_services.py",
    "N2.NO_FIREWALL": "a setting",
    "N2.FIREWALL_WARNS": "the plugin's own words",
    "N2.NETWORK_WARNS": "the plugin's own words",
    "N3.NO_KVM": "the machine",
    "N3.CLOCK_BACK": "test_environment.py",
    "N3.DISK_FULL": "test_environment.py",
    "N3.DISK_READ_ONLY": "test_environment.py",
    "N4.OBSERVED": "an observer's own words",
}


def test_every_code_is_broken_somewhere() -> None:
    assert {*BROKEN, *ELSEWHERE, *test_cluster.BROKEN} == set(verify.CODES)


@pytest.mark.parametrize("code", BROKEN)
def test_found_and_repaired(chain: Chain, code: str) -> None:
    BROKEN[code](chain)
    found = verify.check(chain.config, patience=PATIENCE)
    mine = [one for one in found if one.code == code]
    assert mine, f"only {found}"
    assert mine[0].level == verify.CODES[code].level
    assert mine[0].message.endswith((".", "bug"))
    if not verify.CODES[code].fix:
        return
    disk = chain.directory(ids(chain)["running"]) / "disk-0.qcow2"
    before = (chain.machine.running().keys() - {STRANGER}, disk.stat().st_ino)
    done = verify.fix(chain.config, found)
    assert done
    assert codes_of(chain) == {"N1.NOT_RUNNING"}
    assert (set(chain.machine.running()), disk.stat().st_ino) == before
    assert verify.fix(chain.config, found) == [], "what was repaired is not repaired again"


def test_the_disk_of_a_stranger_is_set_aside(chain: Chain) -> None:
    stranger_domain(chain)
    stranger_files(chain)
    verify.fix(chain.config, verify.check(chain.config))
    (aside,) = (chain.config.state_dir / "attic").iterdir()
    assert (aside / "disk-0.qcow2").read_bytes() == b"somebody's thesis"
    assert codes_of(chain) == {"N1.NOT_RUNNING"}


def test_what_has_come_alive_is_not_repaired(chain: Chain) -> None:
    row = ids(chain)["running"]
    orphan = codes.DOMAIN_ORPHAN.found(row, "it was an orphan when somebody looked")
    files = codes.FILES_ORPHAN.found(row, "likewise")
    tap = codes.TAP_ORPHAN.found(port_of(chain, row), "likewise")
    assert verify.fix(chain.config, [orphan, files, tap]) == []
    assert list(chain.machine.running()) == [row]
    assert codes_of(chain) == {"N1.NOT_RUNNING"}


def test_a_report_that_nobody_confirms(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "repeat_reports", lambda *arguments: None)
    owed_report(chain)
    assert "I6.REPORT_UNCONFIRMED" in codes_of(chain)


def test_secrets_in_the_timeline(chain: Chain) -> None:
    secret_in_timeline(chain)
    found = [one for one in verify.check(chain.config) if one.code == "I9.SECRET_SEEN"]
    assert found
    assert all("4711" not in one.message + one.subject for one in found)


def test_an_instance_may_go_while_it_is_looked_at(
    make_chain: Callable[..., Chain],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = make_chain()
    gone = chain.config.state_dir / "instances" / "i-gone"
    monkeypatch.setattr(node_facts, "_directories", lambda folder: [gone])
    found = verify.check(chain.config, patience=PATIENCE)
    assert {one.code for one in verify.errors(found)} == {"I5.FILES_ORPHAN"}


def test_a_node_that_works_is_not_accused(make_chain: Callable[..., Chain]) -> None:  # noqa: F811
    chain = make_chain()
    # News of a policy comes together when there is much of it.
    patience = dataclasses.replace(PATIENCE, look_again_s=4.0)
    for _ in range(3):
        ids = chain.run_instances(6)
        assert verify.errors(verify.check(chain.config, patience=patience)) == []
        chain.wait_for("running", *ids)
        chain.terminate(*ids)
        assert verify.errors(verify.check(chain.config, patience=patience)) == []
        chain.wait_for("terminated", *ids)


def test_wait_ends_when_nothing_is_wrong_and_when_time_is_up(chain: Chain) -> None:
    started = time.monotonic()
    assert verify.errors(verify.wait(chain.config, 30)) == []
    assert time.monotonic() - started < 10
    stranger_domain(chain)
    started = time.monotonic()
    assert {one.code for one in verify.errors(verify.wait(chain.config, 1))} == {"I2.DOMAIN_ORPHAN"}
    assert time.monotonic() - started >= 1


def test_nothing_is_changed_by_looking(chain: Chain) -> None:
    def tree() -> dict[str, tuple[int, int]]:
        found = sorted(chain.config.state_dir.rglob("*"))
        return {
            str(path): (path.stat().st_size, path.stat().st_mode)
            for path in found
            if path.is_file() and not path.name.endswith(("-wal", "-shm"))
        }

    before = tree()
    verify.check(chain.config)
    assert tree() == before


def test_no_node_here(tmp_path: Path) -> None:
    config = Config()
    nowhere = replace(config.node, state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError):
        verify.check(replace(config, node=nowhere))
    assert not (tmp_path / "state").exists()
