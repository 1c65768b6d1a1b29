"""The cluster's own PostgreSQL and RabbitMQ: what they let in, what they show, how they end."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pika
import psycopg
import pytest

from appliance.bus.amqp_link import MOST_BYTES
from appliance.cluster import services
from appliance.cluster.management import Access, Management
from appliance.cluster.services import daemon, rabbitmq
from appliance.cluster.services.rabbitmq import Rabbitmq
from appliance.errors import ConfigError, Denied, Unavailable
from appliance.run import run
from tests.services.own import OwnServices, running, write_certificates

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]


def psycopg_url(own: OwnServices) -> str:
    return own.store_url.replace("postgresql+psycopg", "postgresql")


def secrets_of(own: OwnServices) -> tuple[bytes, bytes, bytes]:
    cookie = own.state_dir / "services/rabbitmq/home/.erlang.cookie"
    return own.store.password.encode(), own.bus.password.encode(), cookie.read_bytes()


def test_the_store_lets_in_the_cluster_over_tls_only(own_services: OwnServices) -> None:
    with psycopg.connect(psycopg_url(own_services)) as link:
        row = link.execute("SELECT current_user, ssl FROM pg_stat_ssl WHERE pid=pg_backend_pid()")
        assert row.fetchone() == ("anynode", True)
        hashed = link.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        )
        assert hashed.fetchone() == (False, False, False)
    plain = psycopg_url(own_services).replace("sslmode=verify-full", "sslmode=disable")
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(plain)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(psycopg_url(own_services), password="another")
    with pytest.raises(psycopg.OperationalError, match="no pg_hba"):
        psycopg.connect(psycopg_url(own_services), dbname="postgres")


def test_the_socket_of_the_store_is_for_root_and_its_own_user(own_services: OwnServices) -> None:
    where = (
        f"host={own_services.state_dir}/services/postgresql/socket port={own_services.store.port}"
    )
    with psycopg.connect(f"{where} user=postgres dbname=postgres") as link:
        assert link.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"{where} user=anynode dbname=anynode password=x")
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    said = run(
        [*as_nobody, "psql", "-w", f"{where} user=postgres dbname=postgres", "-c", "SELECT 1"],
        deadline_s=20,
        accept=(2,),
    )
    assert "1 row" not in said


def test_the_broker_has_one_login_and_no_guest(own_services: OwnServices) -> None:
    management = Management(own_services.access)
    assert [name for name in management.users() if name[:2] not in ("c-", "h-")] == [rabbitmq.ADMIN]
    assert management.alarms() == ()
    guest = own_services.bus.admin_url.replace(
        own_services.bus.admin_url.partition("//")[2].partition("@")[0], "guest:guest"
    )
    with pytest.raises(Denied, match="does not let this login"):
        Management(
            Access(urls=(guest,), vhost="anynode", authority=own_services.access.authority)
        ).users()


def test_the_broker_is_checked_against_the_clusters_authority(
    own_services: OwnServices, tmp_path: Path
) -> None:
    write_certificates(tmp_path / "other")
    other = (tmp_path / "other" / "authority.pem").read_text()
    wrong = Access(urls=own_services.access.urls, vhost="anynode", authority=other)
    with pytest.raises(Unavailable, match="certificate verify failed") as raised:
        Management(wrong).users()
    assert own_services.bus.password not in str(raised.value)


def test_the_broker_speaks_nothing_but_tls(own_services: OwnServices) -> None:
    parameters = pika.ConnectionParameters(
        own_services.bus.address, own_services.bus.port, connection_attempts=1, socket_timeout=5
    )
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(parameters)
    with connected(own_services, own_services.tls) as link:
        assert link.is_open


def connected(own: OwnServices, tls: ssl.SSLContext) -> pika.BlockingConnection:
    """Connect to the broker with a login that is right."""
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            own.bus.address,
            own.bus.port,
            "anynode",
            pika.PlainCredentials(rabbitmq.ADMIN, own.bus.password),
            ssl_options=pika.SSLOptions(tls),
        )
    )


def test_a_login_without_the_clusters_certificate_is_refused(
    own_services: OwnServices, tmp_path: Path
) -> None:
    stranger = ssl.create_default_context(cafile=str(own_services.authority))
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        connected(own_services, stranger)
    write_certificates(tmp_path / "other")
    stranger.load_cert_chain(tmp_path / "other" / "node.pem", tmp_path / "other" / "node.key")
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        connected(own_services, stranger)


def test_the_broker_takes_no_message_that_is_too_long(own_services: OwnServices) -> None:
    with connected(own_services, own_services.tls) as link:
        channel = link.channel()
        channel.confirm_delivery()
        channel.basic_publish("", "nowhere", b"x" * MOST_BYTES)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="max"):
            channel.basic_publish("", "nowhere", b"x" * (MOST_BYTES + 1))


def test_nothing_of_erlang_listens_on_the_network(own_services: OwnServices) -> None:
    """The distribution and its port mapper are for this machine, each on a port of its own."""
    process = services.broker_of(own_services.state_dir).process()
    assert process is not None
    listening = run(["ss", "-Hltnp"], deadline_s=20).splitlines()
    wanted = {own_services.bus.port, own_services.bus.admin_port}
    own = [line.split()[3] for line in listening if f"pid={process.pid}," in line]
    others = [where for where in own if int(where.rpartition(":")[2]) not in wanted]
    assert len(own) == 3
    assert [where.rpartition(":")[0] for where in others] == ["127.0.0.1"]


def test_daemons_have_no_rights(own_services: OwnServices) -> None:
    for service, name in (
        (services.store_of(own_services.state_dir), "postgres"),
        (services.broker_of(own_services.state_dir), "rabbitmq"),
    ):
        process = service.process()
        assert process is not None
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
        assert Path(f"/proc/{process.pid}").owner() == name


def test_no_secret_is_in_a_command_or_a_log_or_open_to_others(own_services: OwnServices) -> None:
    hidden = secrets_of(own_services)
    for path in own_services.state_dir.rglob("*"):
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if any(secret in content for secret in hidden):
            assert stat.S_IMODE(path.stat().st_mode) in (0o400, 0o600), path
            assert path.name in ("service.json", ".erlang.cookie"), path
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                shown = (entry / name).read_bytes()
            except OSError:
                continue
            assert not any(secret in shown for secret in hidden), f"{entry}/{name}"


def test_a_second_call_finds_what_there_is(own_services: OwnServices) -> None:
    folder, tls = own_services.state_dir, services.tls_of(own_services.state_dir)
    before = services.store_of(folder).process(), services.broker_of(folder).process()
    store, bus = own_services.store, own_services.bus
    assert services.store_of(folder).make(address=store.address, port=store.port, tls=tls) == store
    made = services.broker_of(folder).make(
        address=bus.address, port=bus.port, admin_port=bus.admin_port, tls=tls
    )
    assert made == bus
    assert services.look_after(folder) == ()
    assert (services.store_of(folder).process(), services.broker_of(folder).process()) == before
    with pytest.raises(ConfigError, match=r"was made for 127\.0\.0\.1"):
        services.store_of(folder).make(address="127.0.0.2", port=store.port, tls=tls)


def test_a_machine_without_them_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("appliance.cluster.services.postgresql._PROGRAMS", tmp_path)
    monkeypatch.setattr("appliance.cluster.services.rabbitmq._SERVER", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"apt-get install .* postgresql .*--store-url"):
        services.store_of(tmp_path).make(address="127.0.0.1", port=1, tls=services.tls_of(tmp_path))
    with pytest.raises(ConfigError, match=r"apt-get install .* rabbitmq-server .*--bus-url"):
        services.broker_of(tmp_path).make(
            address="127.0.0.1", port=1, admin_port=2, tls=services.tls_of(tmp_path)
        )
    assert list(tmp_path.iterdir()) == []


def test_killed_services_are_started_again_and_end_without_a_trace() -> None:
    """What was written is there after kill -9; a new certificate is taken up; nothing is left."""
    with running() as own:
        folder = own.state_dir
        store, bus = services.store_of(folder), services.broker_of(folder)
        with psycopg.connect(psycopg_url(own)) as link:
            link.execute("CREATE TABLE kept (value int)")
            link.execute("INSERT INTO kept VALUES (7)")
        management = Management(own.access)
        management.declare(
            "queues", "kept", {"durable": True, "arguments": {"x-queue-type": "quorum"}}
        )
        pids = []
        for service in (store, bus):
            process = service.process()
            assert process is not None
            pids.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            (service.folder / "process.json").unlink()
        wait_until_gone(pids)
        write_certificates(folder / "cluster")
        assert services.look_after(folder) == ("PostgreSQL", "RabbitMQ")
        with psycopg.connect(psycopg_url(own)) as link:
            assert link.execute("SELECT value FROM kept").fetchall() == [(7,)]
        # The new authority vouches for both now, and the queue has outlived the kill.
        Management(own.access).declare(
            "queues", "kept", {"durable": True, "arguments": {"x-queue-type": "quorum"}}
        )

        assert Management(own.access).alarms() == ()
        set_memory_limit(bus, "1MB")
        wait_until(lambda: Management(own.access).alarms() == ("memory anynode@localhost",))

        # A process that a crash kept us from writing down is known by its own id file.
        (store.folder / "process.json").unlink()
        (bus.folder / "process.json").unlink()
        ours = [p.pid for p in (store.process(), bus.process()) if p]
        assert len(ours) == 2
        mapper = daemon.recorded(bus.folder / "epmd.json")
        assert mapper is not None
        assert services.stop(folder) == ("RabbitMQ", "PostgreSQL")
        assert services.stop(folder) == ()
        wait_until_gone([*ours, mapper.pid])
        for port in (own.store.port, own.bus.port, own.bus.admin_port):
            with socket.socket() as probe:
                assert probe.connect_ex((own.bus.address, port)) != 0


def set_memory_limit(broker: Rabbitmq, limit: str) -> None:
    process = broker.process()
    assert process is not None
    words = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    wanted = ("HOME=", "ERL_EPMD", "RABBITMQ_NODENAME=", "RABBITMQ_CONF_ENV_FILE=")
    as_its_user = ["setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups"]
    variables = [word for word in words if word.startswith(wanted)]
    command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "set_vm_memory_high_watermark", "absolute"]
    run([*as_its_user, "env", "--chdir=/", *variables, *command, limit], deadline_s=60)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end, pids
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
