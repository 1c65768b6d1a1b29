"""Messages that wait and messages that were given up, as an operator sees them."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from sqlalchemy import insert, select

from appliance.messages import Wanted, encode
from appliance.store.schema import audit, outbox
from tests.chain.harness import wait_until
from tests.cli.shell import Shell
from tests.services.rabbitmq import VirtualHost

DEAD = "0a1b2c3d-0000-4000-8000-000000000000"


def put(shell: Shell, message_id: str, **values: Any) -> None:
    row = {
        "id": message_id,
        "topic": "controller",
        "lane": "i-1",
        "kind": "Wanted",
        "body": encode(Wanted(instance_id="i-1")),
        "created_at": time.time() - 90,
        **values,
    }
    with contextlib.closing(shell.open_store()) as store:
        store.transaction(lambda tx: tx.execute(insert(outbox).values(**row)))


def bury(shell: Shell) -> None:
    error = "RuntimeError: a bug\n\x1b[31mred"
    put(shell, DEAD, dead_at=time.time(), attempts=5, error=error)


def test_nothing_waits(shell: Shell) -> None:
    assert shell.run("messages") == "No message waits.\n"
    assert shell.json("messages") == {
        "queues": [],
        "broker": None,
        "dead_letters": [],
        "senders": [],
    }


def test_queues_and_dead_letters(shell: Shell) -> None:
    put(shell, "waits")
    bury(shell)
    lines = [line.split() for line in shell.run("messages").splitlines()]
    assert lines[0] == ["QUEUE", "WAITING", "OLDEST", "DEAD"]
    assert lines[1] == ["controller", "1", "1m30s", "1"]
    assert lines[2] == []
    assert lines[4][:3] == ["0a1b2c3d", "Wanted", "i-1"]
    assert lines[4][-4:] == ["RuntimeError:", "a", "bug", "red"]
    assert "\x1b" not in shell.run("messages")
    found = shell.json("messages")
    assert found["queues"][0]["waiting"] == 1
    (letter,) = found["dead_letters"]
    assert letter["message_id"] == DEAD
    assert letter["attempts"] == 5
    assert letter["error"].startswith("RuntimeError: a bug")


def test_a_dead_letter_is_dropped(shell: Shell) -> None:
    bury(shell)
    assert shell.run("messages", "drop", "0a1b") == f"Message {DEAD} is deleted.\n"
    assert shell.json("messages")["dead_letters"] == []
    with contextlib.closing(shell.open_store()) as store:
        rows = store.read(lambda tx: tx.execute(select(audit)).all())
    assert [(row.action, row.subject) for row in rows] == [("DropMessage", "0a1b")]
    assert "No message '0a1b' was given up." in shell.fail("messages", "drop", "0a1b")


def test_what_a_node_may_not_say_is_shown_and_dropped_but_never_sent_again(shell: Shell) -> None:
    now = time.time()
    for number in (1, 2, 3):
        put(shell, f"{number}{DEAD[1:]}", dead_at=now, sender="h-evil", error="It may not.")
    bury(shell)
    assert ["h-evil", "3", "0"] in [line.split()[:3] for line in shell.run("messages").splitlines()]
    (sender,) = shell.json("messages")["senders"]
    assert (sender["login"], sender["kept"], sender["forgotten"]) == ("h-evil", 3, 0)
    assert "came from h-evil" in shell.fail("messages", "requeue", "1a1b")
    assert shell.run("messages", "drop", "--from", "h-evil") == (
        "3 messages of h-evil are deleted.\n"
    )
    (left,) = shell.json("messages")["dead_letters"]
    assert left["message_id"] == DEAD
    assert shell.json("messages")["senders"] == []


def test_what_is_dropped_has_to_be_said(shell: Shell) -> None:
    assert "Say which message" in shell.try_run("messages", "drop").output
    assert "Say which message" in shell.try_run("messages", "drop", "x", "--from", "y").output


def test_what_waits_is_not_dropped(shell: Shell) -> None:
    put(shell, "waits")
    assert "No message 'waits' was given up." in shell.fail("messages", "drop", "waits")
    assert shell.json("messages")["queues"][0]["waiting"] == 1


def test_a_dead_letter_is_requeued_and_the_running_node_handles_it(running: Shell) -> None:
    bury(running)
    printed = running.run("messages", "requeue", DEAD)
    assert printed == f"Message {DEAD} waits for its handler again.\n"
    wait_until(lambda: running.json("messages")["queues"] == [], "the node has handled it")


def test_queues_of_a_broker(shell: Shell, vhost: VirtualHost) -> None:
    node_id = (shell.config.state_dir / "node_id").read_text().strip()
    url = vhost.admit(node_id, is_control=True)
    with shell.config_path.open("a") as settings:
        settings.write(f'[bus]\nurl = "{url}"\n')
    with vhost.channel() as channel:
        channel.basic_publish("anynode", "cast.scheduler", b"{}")
        wait_until(lambda: vhost.depth("scheduler") == 1, "it is there")
    depths = {one["queue"]: one for one in shell.json("messages")["broker"]}
    names = {"scheduler", "controller", "network", "dead", f"node.{node_id}"}
    assert set(depths) == names
    assert depths["scheduler"]["messages"] == 1
    assert depths["controller"]["consumers"] == 0
    lines = [line.split() for line in shell.run("messages").splitlines()]
    assert ["scheduler", "1", "0"] in lines


def test_a_broker_that_is_away_is_said(shell: Shell) -> None:
    bury(shell)
    with shell.config_path.open("a") as settings:
        settings.write('[bus]\nurl = "amqp://c-n:secret@127.0.0.1:1/x"\n')
    result = shell.try_run("messages")
    assert result.exit_code == 0
    assert "No message broker answers at amqp://" in result.stderr
    assert "secret" not in result.output
    assert "0a1b2c3d" in result.stdout
