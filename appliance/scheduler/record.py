"""A placement choice in one sentence."""

from __future__ import annotations

from appliance.model import Ranking, Refusals


def summary(ranking: Ranking, node_name: str | None, claims_lost: int) -> str:
    """Return why an instance went where it did, or each filter's main reason why it did not."""
    if node_name is not None:
        chosen = f"Placed on {node_name}, one of {len(ranking.node_ids)} that could hold it"
        lost = f"; {claims_lost} filled up meanwhile" if claims_lost else ""
        return f"{chosen}, of {ranking.considered} nodes{lost}."
    if not ranking.considered:
        return "There is no node that takes instances."
    if claims_lost:
        return f"All {claims_lost} nodes that could hold it filled up meanwhile."
    reasons = "; ".join(_main_reason(refusals) for refusals in ranking.refusals if refusals.nodes)
    return f"None of {ranking.considered} nodes can hold it: {reasons or 'no reason was given'}."


def _main_reason(refusals: Refusals) -> str:
    reason, count = max(refusals.reasons.items(), key=lambda item: item[1])
    subject = "1 node" if count == 1 else f"{count} nodes"
    return f"{refusals.filter}: {subject} {_plural(reason) if count != 1 else reason}"


def _plural(reason: str) -> str:
    """Return a reason such as "has too little" so that it completes "3 nodes …"."""
    for singular, plural in (("has ", "have "), ("is ", "are "), ("does ", "do ")):
        if reason.startswith(singular):
            return plural + reason.removeprefix(singular)
    return reason
