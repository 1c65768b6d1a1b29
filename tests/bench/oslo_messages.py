"""What a question and a cast cost with oslo.messaging; run by an interpreter that has it.

Prints one line of JSON: seconds by name. Both ends are in this process, as ours are.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any


def main(url: str, rounds: int) -> None:
    """Measure on the broker of a URL."""
    messaging: Any = import_module("oslo_messaging")
    config: Any = import_module("oslo_config.cfg")
    conf = config.CONF
    conf([])
    handled = threading.Semaphore(0)

    class Endpoint:
        def ask(self, context: object, instance_id: str) -> dict[str, str]:
            return {"detail": "x"}

        def take(self, context: object, instance_id: str) -> None:
            handled.release()

    transport = messaging.get_rpc_transport(conf, url=url)
    target = messaging.Target(topic="network", server="a")
    server = messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
    server.start()
    client = messaging.get_rpc_client(transport, messaging.Target(topic="network"))
    client.call({}, "ask", instance_id="i-1")

    def cast() -> None:
        client.cast({}, "take", instance_id="i-1")
        handled.acquire()

    asked = _cost(lambda: client.call({}, "ask", instance_id="i-1"), rounds)
    sent = _cost(cast, rounds)
    found = {
        "oslo.messaging, question and answer: CPU, both ends": asked[0],
        "oslo.messaging, question and answer: time": asked[1],
        "oslo.messaging, cast, handled: CPU, both ends": sent[0],
        "oslo.messaging, cast, handled: time": sent[1],
    }
    print(json.dumps(found))
    sys.stdout.flush()
    server.stop()


def _cost(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    cpu_s, began = time.process_time(), time.monotonic()
    for _ in range(rounds):
        work()
    return (time.process_time() - cpu_s) / rounds, (time.monotonic() - began) / rounds


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
