from __future__ import annotations

from pathlib import Path

from appliance.hooks import Injection
from appliance.model import InjectionRequest
from appliance.testing.injection import InjectionContract, tree


class TestNone(InjectionContract, plugin="none"):
    def test_writes_nothing(self, driver: Injection, request_: InjectionRequest) -> None:
        before = tree(Path(request_.directory))
        result = driver.inject(request_)
        assert tree(Path(request_.directory)) == before
        assert result.disks == ()
        assert "metadata service" in result.summary
