from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import AnynodeError, ConfigError, PluginError, cause_chain
from appliance.hookspecs import GROUPS
from appliance.plugin_loader import PluginLoader
from appliance.plugins import Installed, find, installed, offered
from appliance.testing.distribution import write_distribution

_numbers = itertools.count()

WEIGHT = """
    from appliance.hookspecs import hookimpl

    api_versions = frozenset({1})

    class Weight:
        @hookimpl
        def weight_score(self, request, nodes):
            return [1.0 for node in nodes]

    def create(settings, context):
        return Weight()
"""

Offer = Callable[..., str]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Return a maker of installed plugins, which answers with the module's name."""

    def make(
        name: str = "mine",
        text: str = WEIGHT,
        group: str = "appliance.weight",
        distribution: str = "",
    ) -> str:
        number = next(_numbers)
        module = f"throwaway_plugin_{number}"
        folder = write_distribution(
            tmp_path / str(number),
            distribution or f"stranger-{number}",
            {group: {name: module}},
            **{module: text},
        )
        monkeypatch.syspath_prepend(folder)
        return module

    return make


@pytest.fixture
def settings() -> dict[str, Any]:
    """Return the settings that the loader gives to every plugin."""
    return {}


@pytest.fixture
def loader(tmp_path: Path, settings: dict[str, Any]) -> PluginLoader:
    """Return a loader as a node has it."""
    return PluginLoader(
        node_name="node-1",
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
        settings=lambda group, name: settings,
    )


class TestFinding:
    def test_says_what_offers_it(self, offer: Offer) -> None:
        module = offer(name="mine", distribution="anynode-weight-mine")
        assert find("appliance.weight", "mine") == Installed(
            group="appliance.weight",
            name="mine",
            module=module,
            distribution="anynode-weight-mine",
            version="1.0",
        )

    def test_unknown_name_lists_what_is_installed(self, offer: Offer) -> None:
        offer(name="mine")
        with pytest.raises(PluginError, match=r"No plugin 'mime' in .*; installed: .*\bmine\b"):
            find("appliance.weight", "mime")

    def test_unknown_group_lists_the_groups(self) -> None:
        with pytest.raises(PluginError, match=r"no plugin group 'appliance.wheight'.*\.weight"):
            find("appliance.wheight", "mine")

    def test_nothing_installed_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(PluginError, match="installed: none"):
            find("appliance.weight", "mine")

    def test_two_distributions_that_offer_a_name_are_refused(self, offer: Offer) -> None:
        first = offer(distribution="stranger-a")
        second = offer(distribution="stranger-b")
        with pytest.raises(PluginError) as caught:
            find("appliance.weight", "mine")
        for word in ("'mine'", "stranger-a", "stranger-b", first, second):
            assert word in caught.value.message
        with pytest.raises(PluginError, match="stranger-a"):
            installed("appliance.weight")
        assert [one.distribution for one in offered("appliance.weight") if one.name == "mine"] == [
            "stranger-a",
            "stranger-b",
        ]

    def test_a_doubled_name_does_no_harm_to_others(self, offer: Offer) -> None:
        offer(name="doubled")
        offer(name="doubled")
        offer(name="mine")
        assert find("appliance.weight", "mine").name == "mine"

    def test_same_short_name_in_two_groups(self, offer: Offer, loader: PluginLoader) -> None:
        weight = offer(name="memory-x", group="appliance.weight")
        scheduler = offer(name="memory-x", group="appliance.scheduler")
        assert find("appliance.weight", "memory-x").module == weight
        assert find("appliance.scheduler", "memory-x").module == scheduler

    def test_built_in_plugins_are_found_like_strangers(self) -> None:
        assert {"chance", "zone", "simple", "filter"} <= installed("appliance.scheduler").keys()
        assert {"up", "zone", "capacity"} <= installed("appliance.filter").keys()
        assert {"memory", "vcpus", "spread"} <= installed("appliance.weight").keys()


class TestLoading:
    def test_only_what_is_named_is_imported(self, offer: Offer, loader: PluginLoader) -> None:
        broken = offer(name="broken", text="raise RuntimeError('imported')")
        other = offer(name="other")
        mine = offer(name="mine")
        loader.weights({"mine": 1.0})
        assert mine in sys.modules
        assert broken not in sys.modules
        assert other not in sys.modules

    @pytest.mark.parametrize(
        "text", ["raise RuntimeError('broken here')", "import no_such_module_here", "def ("]
    )
    def test_a_broken_module_is_named(self, offer: Offer, loader: PluginLoader, text: str) -> None:
        offer(name="mine", text=text, distribution="stranger-a")
        with pytest.raises(PluginError, match=r"Could not import .*'mine'.* stranger-a") as caught:
            loader.create("appliance.weight", "mine")
        assert len(cause_chain(caught.value)) == 2

    @pytest.mark.parametrize(
        ("text", "missing"),
        [("api_versions = frozenset({1})", "create"), ("def create(s, c): ...", "api_versions")],
    )
    def test_a_module_without_its_names_is_refused(
        self, offer: Offer, loader: PluginLoader, text: str, missing: str
    ) -> None:
        offer(text=text)
        with pytest.raises(PluginError, match=f"'mine' of appliance.weight has no '{missing}'"):
            loader.create("appliance.weight", "mine")

    def test_api_versions_without_intersection_print_both_sets(
        self, offer: Offer, loader: PluginLoader
    ) -> None:
        offer(text=WEIGHT.replace("{1}", "{7, 8}"))
        with pytest.raises(PluginError, match=r"speaks API versions \[7, 8\].* speaks \[1\]"):
            loader.create("appliance.weight", "mine")

    def test_one_shared_api_version_is_enough(self, offer: Offer, loader: PluginLoader) -> None:
        offer(text=WEIGHT.replace("{1}", "{1, 7}"))
        loader.create("appliance.weight", "mine")

    @pytest.mark.parametrize("versions", ["1", "'1'", "[1]", "{'1'}", "None"])
    def test_api_versions_are_a_set_of_integers(
        self, offer: Offer, loader: PluginLoader, versions: str
    ) -> None:
        offer(text=WEIGHT.replace("frozenset({1})", versions))
        with pytest.raises(PluginError, match="not a set of integers"):
            loader.create("appliance.weight", "mine")

    def test_a_failure_of_create_is_the_plugins(self, offer: Offer, loader: PluginLoader) -> None:
        offer(text=WEIGHT.replace("return Weight()", "return 1 / 0"))
        with pytest.raises(PluginError, match="Could not make plugin 'mine'") as caught:
            loader.create("appliance.weight", "mine")
        assert "ZeroDivisionError" in cause_chain(caught.value)[1]

    def test_create_may_raise_errors_of_ours(self, offer: Offer, loader: PluginLoader) -> None:
        raising = "from appliance.errors import Unavailable; raise Unavailable('No device.')"
        offer(text=WEIGHT.replace("return Weight()", raising))
        with pytest.raises(AnynodeError, match=r"No device\.") as caught:
            loader.create("appliance.weight", "mine")
        assert caught.value.code == "Unavailable"

    def test_folders_belong_to_the_plugin_alone(
        self, offer: Offer, loader: PluginLoader, tmp_path: Path
    ) -> None:
        offer(text=WEIGHT.replace("return Weight()", "w = Weight(); w.context = context; return w"))
        context = loader.create("appliance.weight", "mine").context  # type: ignore[attr-defined]
        assert context.node_name == "node-1"
        assert context.state_dir == tmp_path / "state" / "plugins" / "weight-mine"
        for folder in (context.state_dir, context.run_dir):
            assert folder.stat().st_mode & 0o777 == 0o700

    def test_a_folder_keeps_the_mode_that_its_plugin_gave_it(
        self, offer: Offer, loader: PluginLoader, tmp_path: Path
    ) -> None:
        offer()
        loader.create("appliance.weight", "mine")
        folder = tmp_path / "run" / "plugins" / "weight-mine"
        folder.chmod(0o711)
        loader.create("appliance.weight", "mine")
        assert folder.stat().st_mode & 0o777 == 0o711

    def test_credentials_go_to_those_who_authenticate_alone(
        self, offer: Offer, tmp_path: Path
    ) -> None:
        text = WEIGHT.replace("return Weight()", "return context.credentials or 'none'")
        offer(text=text, group="appliance.weight")
        offer(text=text, group="appliance.auth")

        class Keys:
            def find(self, access_key_id: str) -> None:
                return None

        keys = Keys()
        loader = PluginLoader(
            node_name="node-1",
            state_dir=tmp_path,
            run_dir=tmp_path,
            settings=lambda group, name: {},
            credentials=keys,
        )
        assert loader.create("appliance.auth", "mine") is keys
        assert loader.create("appliance.weight", "mine") == "none"


SETTINGS = (
    WEIGHT
    + """
    import msgspec

    class Limits(msgspec.Struct, frozen=True):
        low: int = 1

    class Settings(msgspec.Struct):
        limits: Limits = Limits()
        factor: float = 1.0
"""
)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"factr": 2.0}, "'mine' has no setting 'factr'; it has limits, factor"),
            ({"factor": "two"}, r"'mine': Expected `float`, got `str` - at `\$.factor`"),
            ({"limits": {"low": 1.5}}, r"Expected `int`, got `float` - at `\$.limits.low`"),
        ],
    )
    def test_wrong_settings_name_the_place(
        self, offer: Offer, loader: PluginLoader, message: str
    ) -> None:
        offer(text=SETTINGS)
        with pytest.raises(ConfigError, match=message):
            loader.create("appliance.weight", "mine")

    @pytest.mark.parametrize("settings", [{"factor": 2}])
    def test_right_settings_arrive(self, offer: Offer, loader: PluginLoader) -> None:
        offer(text=SETTINGS.replace("return Weight()", "return settings"))
        made = loader.create("appliance.weight", "mine")
        assert made.factor == 2.0  # type: ignore[attr-defined]

    @pytest.mark.parametrize("settings", [{"any": 1}])
    def test_a_plugin_without_settings_takes_none(self, offer: Offer, loader: PluginLoader) -> None:
        offer()
        with pytest.raises(ConfigError, match="no setting 'any'; it has none"):
            loader.create("appliance.weight", "mine")

    def test_settings_must_be_a_struct(self, offer: Offer, loader: PluginLoader) -> None:
        offer(text=WEIGHT + "\n    Settings = dict\n")
        with pytest.raises(PluginError, match=r"no msgspec\.Struct"):
            loader.create("appliance.weight", "mine")


class TestBuiltInDistributions:
    """What a stranger could not do, the built-in plugins do not do either."""

    @pytest.mark.parametrize("group", sorted(set(GROUPS) - {"appliance.role"}))
    def test_each_has_its_own_distribution(self, group: str) -> None:
        for plugin in offered(group):
            kind = group.removeprefix("appliance.")
            if plugin.distribution.startswith("anynode"):
                assert plugin.distribution == f"anynode-{kind}-{plugin.name}"
                assert plugin.module == f"anynode_{kind}_{plugin.name}"
