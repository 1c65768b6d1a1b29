"""Every action of the table is called, and every reply is read back by botocore."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.front_door import Reply
from appliance.config import Config, QuotaSettings
from tests.api.ec2.examples.stage import EXAMPLES, Stage
from tests.api.front import Front

for _path in sorted(Path(__file__).with_name("examples").glob("*.py")):
    importlib.import_module(f"tests.api.ec2.examples.{_path.stem}")

# What they list cannot exist here.
ALWAYS_EMPTY: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    quota = QuotaSettings(instances=1000, vcpus=10_000, memory_mib=10**8)
    front = Front(tmp_path_factory.mktemp("stage"), msgspec.structs.replace(Config(), quota=quota))
    yield Stage(front)
    front.close()


def test_examples_are_of_actions_that_are_served() -> None:
    assert set(EXAMPLES) <= set(ACTIONS)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_what_is_meant_is_what_botocore_hears(stage: Stage, action: str) -> None:
    assert EXAMPLES.get(action), f"{action} has no example in tests/api/ec2/examples"
    stage.meant.clear()
    for play in EXAMPLES[action]:
        play(stage)
    assert action in stage.meant, f"the examples of {action} do not call it"
    assert stage.meant[action] or not stage.has_output(action) or action in ALWAYS_EMPTY


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<regionName>local-1</regionName>", b""),
        (b"regionName>", b"regionname>"),
        (b"local-1<", b"local-2<"),
        (b"</item>", b"<colour>red</colour></item>"),
    ],
)
def test_a_reply_that_says_something_else_is_noticed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes
) -> None:
    answer = stage._post

    def tampered(form: str) -> Reply:
        reply = answer(form)
        assert old in reply.body
        return dataclasses.replace(reply, body=reply.body.replace(old, new))

    monkeypatch.setattr(stage, "_post", tampered)
    with pytest.raises(AssertionError):
        stage.ask("DescribeRegions")
