"""The invariants of a node, checked from outside of its process on the same folders; and those of
a cluster, whose other nodes are asked what they have.

A node that works is never at rest: what is found must be there in two looks, a little apart, and
what is under way is judged by its age alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from appliance.config import Config
from appliance.model import Finding
from appliance.verify import codes, environment, invariants, repair
from appliance.verify.codes import CODES
from appliance.verify.facts import gather

__all__ = ["CODES", "Patience", "check", "errors", "fix", "wait"]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long something may last before it is a finding, in seconds.

    ``look_again_s`` lies between the two looks at a node that runs: more than news of a policy
    may wait for.
    """

    progress_s: float = 120.0
    message_s: float = 60.0
    look_again_s: float = 2.5


USUAL = Patience()

_STANDING = {
    code.code
    for code in (codes.ROLES_MEET, codes.NO_KVM, codes.CERTIFICATE_ENDS, codes.DEAD_LETTER)
}
"""What stays as it is until somebody does something about it."""


def check(config: Config, *, patience: Patience = USUAL, of_cluster: bool = False) -> list[Finding]:
    """Return what is wrong with the node of these settings, or its cluster; changes nothing.

    :raises ConfigError: no node was ever set up here, this user may not read its state, or a
        cluster is asked for and the node is in none, or does not reach its store.
    :raises Unavailable: the store does not answer.
    """
    look = _look_at_cluster if of_cluster else _look
    first, is_running = look(config, patience)
    if is_running and any(_may_pass(finding, of_cluster) for finding in first):
        time.sleep(patience.look_again_s)
        seen = {(finding.code, finding.subject) for finding in first}
        second, _ = look(config, patience)
        first = [one for one in second if (one.code, one.subject) in seen]
    return sorted(first, key=lambda one: (one.level, one.code, one.subject))


def _may_pass(finding: Finding, of_cluster: bool) -> bool:
    """Say whether something may be otherwise in a moment, because the node works on it."""
    return (finding.code[0] == "I" or of_cluster) and finding.code not in _STANDING


def _look(config: Config, patience: Patience) -> tuple[list[Finding], bool]:
    facts = gather(config)
    found = [
        *invariants.compare(facts, progress_s=patience.progress_s, message_s=patience.message_s),
        *environment.look(config, facts),
    ]
    return found, facts.is_running


def _look_at_cluster(config: Config, patience: Patience) -> tuple[list[Finding], bool]:
    # The broker's client is for clusters alone.
    from appliance.verify import cluster

    found = cluster.look(config, progress_s=patience.progress_s, message_s=patience.message_s)
    return found, True


def errors(findings: Collection[Finding]) -> list[Finding]:
    """Return the findings that are errors."""
    return [finding for finding in findings if finding.level == "error"]


def wait(
    config: Config, seconds: float, *, patience: Patience = USUAL, of_cluster: bool = False
) -> list[Finding]:
    """Check again and again until nothing is an error or the time is up; return the last findings.

    At least one check is made.
    """
    until = time.monotonic() + seconds
    while True:
        found = check(config, patience=patience, of_cluster=of_cluster)
        if not errors(found) or time.monotonic() > until:
            return found
        time.sleep(0.2)


def fix(config: Config, findings: Collection[Finding]) -> list[str]:
    """Repair what has no owner any more and what was counted wrongly; return what was done.

    Each finding is looked at anew before anything is changed, so that nothing with a live record
    is ever touched, and nothing of others'. Disks are set aside, not deleted. Safe to repeat.

    :raises AnynodeError: a repair failed; those before it are done.
    """
    return repair.repair(config, findings)
