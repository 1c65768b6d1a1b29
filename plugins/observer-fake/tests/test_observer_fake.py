from __future__ import annotations

from anynode_observer_fake import Fake

from appliance.hooks import Observers
from appliance.model import Finding
from appliance.testing.observer import ObserverContract, make_entry


class TestFake(ObserverContract, plugin="fake", settings={"keep": 3}):
    def test_keeps_the_newest(self, driver: Observers, made: Fake) -> None:
        for number in range(5):
            driver.instance_event(make_entry(number))
        assert list(made.entries) == [make_entry(number) for number in (2, 3, 4)]

    def test_finds_what_it_is_told_to_find(self, driver: Observers, made: Fake) -> None:
        finding = Finding(code="TEST", level="warning", message="A test says so.")
        made.findings.append(finding)
        assert driver.node_check() == [finding]
