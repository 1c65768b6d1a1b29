"""Ansible's amazon.aws modules, run by the Ansible of `make clients`.

Its modules wait 15 seconds at a time, so the playbooks are played beside each other.
"""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.clients.endpoint import ANSIBLE, ROOT, Endpoint
from tests.clients.how_to import snippet
from tests.clients.keys import write_public_key

LIFE = ROOT / "tests/clients/ansible/life.yml"
DEADLINE_S = 240

Played = dict[str, CompletedProcess[str]]


@pytest.fixture(scope="module")
def played(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """What came of each playbook."""
    folder = tmp_path_factory.mktemp("ansible")
    write_public_key(folder / "key.pub")
    shutil.copy(LIFE, folder)
    (folder / "how-to.yml").write_text(snippet("yaml"))

    def play(name: str) -> CompletedProcess[str]:
        command: list[str | Path] = [ANSIBLE, "-i", "localhost,", folder / f"{name}.yml"]
        return endpoint.try_run(command, DEADLINE_S, **endpoint.ansible_settings())

    names = ("life", "how-to")
    with ThreadPoolExecutor(len(names)) as players:
        return dict(zip(names, players.map(play, names), strict=True))


@pytest.mark.timeout(DEADLINE_S + 60)
def test_a_whole_life_twice_over(played: Played) -> None:
    done = played["life"]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.search(r"ok=\d\d .*unreachable=0 +failed=0 +skipped=0", done.stdout), done.stdout


def test_the_how_to(played: Played) -> None:
    done = played["how-to"]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.search(r'"msg": "172\.31\.\d+\.\d+"', done.stdout), done.stdout
    assert re.search(r"ok=3 +changed=2 ", done.stdout), done.stdout
