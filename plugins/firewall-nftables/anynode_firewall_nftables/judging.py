"""Epochs in the kernel: the next one begins, and what is left of old ones is cleared away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from anynode_firewall_nftables.cutting import FormerOwners
from anynode_firewall_nftables.epochs import (
    ENDED,
    FIRST,
    FORMER_LIMIT,
    LAST,
    MASK,
    SHIFT,
    disown,
    disown_none,
    forget,
    switch,
)
from anynode_firewall_nftables.kernel import Ruleset
from anynode_firewall_nftables.netfilter import Netfilter
from appliance.errors import CommandFailed
from appliance.firewall.rules import IPAddress

log = logging.getLogger(__name__)

_ATTEMPTS = 20


class Judging:
    """The epoch that flows are judged in. It remembers what it has read; the kernel decides.

    Every transaction names the epoch that it begins from and fails when it is another one: two
    programs that take something away at the same moment begin two epochs, one after the other.
    """

    def __init__(
        self, ruleset: Ruleset, netfilter: Netfilter, apply: Callable[[Iterable[str]], None]
    ) -> None:
        self._ruleset = ruleset
        self._netfilter = netfilter
        self._apply = apply
        self._epoch: int | None = None
        self._former: dict[tuple[str, IPAddress], int] = {}

    def apply_with_base(self, commands: Iterable[str]) -> None:
        """Apply a transaction that makes the base, and put the chains of the epoch into it.

        Where no epoch is in force, marks may be left of a time before: they are cleared.
        """
        listed = list(commands)
        self._read()

        def apply() -> None:
            if self._epoch is None:
                self._clear(0)
            self._apply([*listed, *switch(self._epoch, self._epoch or FIRST)])
            self._epoch = self._epoch or FIRST

        self._agreed(apply)

    def apply(
        self,
        commands: Iterable[str],
        bridge: str,
        gained: Iterable[IPAddress],
        lost: Iterable[IPAddress] = (),
    ) -> None:
        """Apply a transaction after which addresses of a network have new owners, or none."""
        listed, keys, ownerless = list(commands), _keys(bridge, gained), _keys(bridge, lost)

        def change() -> None:
            if len(self._former) + len(keys) > FORMER_LIMIT:
                self._sweep(self._known())
            epoch = self._known()
            self._apply(
                [
                    *listed,
                    *forget(self._former, ownerless),
                    *disown(self._former, keys, epoch),
                ]
            )
            self._former |= dict.fromkeys(keys, epoch)
            for key in ownerless:
                self._former.pop(key, None)

        if keys or any(key in self._former for key in ownerless):
            self._agreed(change)
        else:
            self._apply(listed)

    def forget(self, commands: Iterable[str], bridge: str) -> None:
        """Apply a transaction that removes a network, and forget its former owners."""
        listed = list(commands)

        def change() -> None:
            gone = [key for key in self._former if key[0] == bridge]
            self._apply([*listed, *forget(self._former, gone)])
            for key in gone:
                del self._former[key]

        self._agreed(change)

    def anew(self, bridge: str, gained: Iterable[IPAddress] = ()) -> None:
        """Judge every flow anew from its next packet on, and end those of former owners.

        :param gained: addresses that :meth:`apply` was told of.
        :raises CommandFailed: the epoch is the old one, in which flows go on.
        """
        keys = _keys(bridge, gained)

        def begin() -> None:
            epoch = self._known()
            if any(self._former.get(key) != epoch for key in keys):
                # Another program has begun an epoch since.
                self._apply(disown(self._former, keys, epoch))
                self._former |= dict.fromkeys(keys, epoch)
            if epoch >= LAST:
                self._sweep(epoch)
            else:
                self._apply(switch(epoch, epoch + 1))
                self._epoch = epoch + 1

        self._agreed(begin)

    def end(self, zone: int, addresses: Iterable[IPAddress]) -> None:
        """Forget the flows of addresses of a network; costs a listing of all flows."""
        owners = FormerOwners({zone: dict.fromkeys(addresses, ENDED)})
        count = self._netfilter.end(flow for flow in self._netfilter.flows() if owners.had(flow))
        if count:
            log.info("zone %d: ended %d flows", zone, count)

    def _known(self) -> int:
        if self._epoch is None:
            raise CommandFailed("The firewall's tables are missing.")
        return self._epoch

    def _read(self) -> None:
        self._epoch = self._ruleset.epoch()
        self._former = self._ruleset.former() if self._epoch is not None else {}

    def _agreed(self, work: Callable[[], None]) -> None:
        """Do the work, again when another program has begun an epoch meanwhile."""
        for _ in range(_ATTEMPTS):
            known = self._epoch
            try:
                return work()
            except CommandFailed:
                self._read()
                if self._epoch == known:
                    raise
        raise CommandFailed("Other programs change the firewall all the time.")

    def _sweep(self, epoch: int) -> None:
        """End the flows of former addresses and forget those; after the last epoch, begin again.

        Flows that are marked with an epoch to come would pass in it unjudged: all marks but that
        of the epoch in force are cleared before it ends, and that one after.
        """
        zones = {item.bridge: item.zone for item in (self._ruleset.stored() or {}).values()}
        by_zone: dict[int, dict[IPAddress, int]] = {}
        for (bridge, address), bound in self._former.items():
            if bridge in zones:
                by_zone.setdefault(zones[bridge], {})[address] = bound
        owners = FormerOwners(by_zone)
        flows = self._netfilter.flows()
        ended = [flow for flow in flows if flow.mark >> SHIFT == ENDED or owners.had(flow)]
        count = self._netfilter.end(ended)
        is_last = epoch >= LAST
        if is_last:
            self._clear(epoch)
        following = FIRST if is_last else epoch + 1
        self._apply([*switch(epoch, following), *disown_none()])
        self._epoch, self._former = following, {}
        if is_last:
            self._clear(following)
        log.info("epoch %d: ended %d flows that nothing let through", following, count)

    def _clear(self, kept: int) -> None:
        """Clear our bits of the marks of all flows but those of an epoch."""
        flows = [flow for flow in self._netfilter.flows() if flow.mark >> SHIFT not in (0, kept)]
        self._netfilter.unmark(flows, MASK)


def _keys(bridge: str, addresses: Iterable[IPAddress]) -> list[tuple[str, IPAddress]]:
    return sorted(((bridge, address) for address in addresses), key=str)
