from __future__ import annotations

import re

import pytest

from appliance.world import Ids, RandomIds, SeededIds, SystemClock


class TestIds:
    @pytest.mark.parametrize("ids", [RandomIds(), SeededIds(7)])
    def test_forms(self, ids: Ids) -> None:
        assert re.fullmatch(r"i-[0-9a-f]{17}", ids.ec2("i"))
        assert re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", ids.uuid())
        mac = ids.mac()
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
        first = int(mac[:2], 16)
        assert (first & 2, first & 1) == (2, 0), "locally administered, unicast"

    @pytest.mark.parametrize("ids", [RandomIds(), SeededIds(7)])
    def test_are_never_used_twice(self, ids: Ids) -> None:
        made = [name for _ in range(1000) for name in (ids.ec2("i"), ids.uuid())]
        assert len(set(made)) == len(made)

    def test_a_seed_decides(self) -> None:
        def some(seed: int) -> list[str]:
            ids = SeededIds(seed)
            return [ids.ec2("i"), ids.uuid(), ids.mac()]

        assert some(1) == some(1)
        assert some(1) != some(2)


class TestClock:
    def test_monotonic_never_goes_back(self) -> None:
        clock = SystemClock()
        before = clock.monotonic()
        clock.sleep(0.001)
        assert clock.monotonic() - before >= 0.001
        assert clock.now() > 1_600_000_000
