"""What questions and casts cost on a real broker, both ends together; and oslo.messaging's, too.

oslo.messaging is no dependency of ours: where ``setup/bench.py`` has installed it, or an
interpreter that has it is named by ``BENCH_OSLO_PYTHON``, it is measured by turns with ours on the
same broker.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from appliance.bus.amqp import AmqpBus
from appliance.messages import Done, ReadConsole, Wanted
from appliance.role import Role
from appliance.world import World
from tests.bench.figure import Figure, Figures, cpu_of, ms
from tests.services.rabbitmq import VirtualHost, running

OSLO_PYTHON = "BENCH_OSLO_PYTHON"
_INSTALLED = Path("var/bench-peers/venv/bin/python")
_OURS = "question and answer: CPU, both ends"
_OSLOS = "oslo.messaging, question and answer: CPU, both ends"
_TURNS = 5
_ROUNDS = 1000
_DEADLINE_S = 60.0


def measure(is_quick: bool) -> Figures:
    """Measure a question with its answer, and a cast that a broker has confirmed."""
    rounds, turns = (20, 1) if is_quick else (_ROUNDS, _TURNS)
    python = os.environ.get(OSLO_PYTHON, "") or (str(_INSTALLED) if _INSTALLED.exists() else "")
    found: list[Figures] = []
    with running() as broker:
        for _ in range(turns):
            figures = _ours(broker.new_vhost(), rounds, broker.pid)
            if python:
                figures |= _oslo(broker.new_vhost(), rounds, python)
                share = figures[_OURS].value / figures[_OSLOS].value
                figures["question and answer: CPU to oslo.messaging's"] = Figure(
                    round(share, 3), "ratio", 0.5
                )
            found.append(figures)
    return {name: _median([one[name] for one in found]) for name in found[0]}


def _median(figures: list[Figure]) -> Figure:
    return Figure(
        statistics.median(one.value for one in figures), figures[0].unit, figures[0].target
    )


def _ours(vhost: VirtualHost, rounds: int, broker_pid: int) -> Figures:
    handled = threading.Semaphore(0)
    serving, asking = (
        AmqpBus([vhost.url], World(), store=None, node_id=name, attempts=3, lanes=4)
        for name in ("a", "b")
    )
    serving.serve(
        Role(
            name="network",
            topic="network",
            calls={ReadConsole: lambda question: Done(detail="x")},
            casts={Wanted: lambda message, delivery: handled.release()},
        )
    )
    serving.start()
    asking.start()

    def ask() -> None:
        asking.call("network", ReadConsole(instance_id="i-1"), Done, _DEADLINE_S)

    def cast() -> None:
        asking.cast("network", Wanted(instance_id="i-1"))
        handled.acquire()

    try:
        ask()
        broker_cpu_s = cpu_of(broker_pid)
        asked = _cost(ask, rounds)
        broker_cpu_s = (cpu_of(broker_pid) - broker_cpu_s) / rounds
        sent = _cost(cast, rounds)
    finally:
        asking.stop(5)
        serving.stop(5)
    return {
        _OURS: ms(asked[0]),
        "question and answer: time": ms(asked[1]),
        "question and answer: the broker's CPU": ms(broker_cpu_s),
        "cast, confirmed and handled: CPU, both ends": ms(sent[0]),
        "cast, confirmed and handled: time": ms(sent[1]),
    }


def _cost(work: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return the seconds of this process's CPU, and of time, that a round takes."""
    cpu_s, began = time.process_time(), time.monotonic()
    for _ in range(rounds):
        work()
    return (time.process_time() - cpu_s) / rounds, (time.monotonic() - began) / rounds


def _oslo(vhost: VirtualHost, rounds: int, python: str) -> Figures:
    script = Path(__file__).with_name("oslo_messages.py")
    done = subprocess.run(
        [python, str(script), vhost.url.replace("amqp://", "rabbit://"), str(rounds)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: Figure(round(seconds * 1e3, 3), "ms") for name, seconds in found.items()}
