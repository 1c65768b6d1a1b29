"""A stranger's plugin is tested with one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appliance.errors import CommandFailed
from appliance.run import run
from appliance.testing.distribution import write_distribution

SCHEDULER = """
    import random

    from appliance.hookspecs import hookimpl
    from appliance.model import Ranking
    from appliance.scheduler.ranking import ASKED, CAPACITY, UP, sift

    api_versions = frozenset({1})

    class Stranger:
        @hookimpl
        def scheduler_rank(self, request, nodes):
            fitting, refusals = sift(request, nodes, (ASKED, UP, CAPACITY))
            chosen = sorted(node.node_id for node in fitting)
            random.Random(request.seed).shuffle(chosen)
            return Ranking(
                node_ids=tuple(chosen[:20]), considered=len(nodes), refusals=refusals
            )

    def create(settings, context):
        return Stranger()
"""

LINE = """
    from appliance.testing.scheduler import SchedulerContract

    class TestMine(SchedulerContract, plugin="mine"): ...
"""


def run_contract(folder: Path, scheduler: str) -> str:
    """Return what pytest prints for a scheduler in a process of its own."""
    groups = {"appliance.scheduler": {"mine": "strangers_scheduler"}}
    modules = {"strangers_scheduler": scheduler, "test_mine": LINE}
    write_distribution(folder, "strangers-scheduler", groups, **modules)
    return run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder / "test_mine.py"],
        environment={"PYTHONPATH": str(folder)},
        deadline_s=120,
    )


class TestOneLine:
    def test_a_right_scheduler_passes(self, tmp_path: Path) -> None:
        assert "12 passed" in run_contract(tmp_path, SCHEDULER)

    @pytest.mark.parametrize(
        ("right", "wrong", "failing"),
        [
            ("ASKED, UP, CAPACITY))", "UP, CAPACITY))", "test_never_names_an_excluded_node"),
            ("Random(request.seed)", "SystemRandom()", "test_same_question_has_the_same_answer"),
            ("random.Random(request.seed).shuffle(chosen)", "pass", "test_seeds_spread"),
            ("chosen[:20]", "chosen", "test_answer_stays_small"),
            ("refusals=refusals", "refusals=()", "test_says_why_when_nothing_fits"),
        ],
    )
    def test_finds_what_is_wrong(
        self, tmp_path: Path, right: str, wrong: str, failing: str
    ) -> None:
        assert right in SCHEDULER
        with pytest.raises(CommandFailed, match=f"FAILED .*{failing}"):
            run_contract(tmp_path, SCHEDULER.replace(right, wrong))
