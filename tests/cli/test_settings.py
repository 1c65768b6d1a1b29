"""Settings and plugins by the command line."""

from __future__ import annotations

import pytest

from appliance.config import Config, settings_of
from tests.cli.shell import Shell


def test_every_setting_is_listed(empty: Shell) -> None:
    lines = {line["name"]: line for line in empty.json("config")}
    assert {setting.name for setting in settings_of(Config)} <= set(lines)
    assert set(lines["api.port"]) == {"name", "type", "value", "default", "is_set", "help"}
    assert lines["api.port"]["is_set"]
    assert lines["api.port"]["default"] == 8773
    assert not lines["api.threads"]["is_set"]
    assert lines["plugins.compute.fake.vcpus"]["value"] == 64


def test_what_differs_has_a_star(empty: Shell) -> None:
    printed = empty.run("config").splitlines()
    starred = [line.split()[1] for line in printed[2:] if line.startswith("*")]
    assert starred == [
        *("node.name", "node.state_dir", "node.run_dir", "api.port", "network.type"),
        *("network.metadata", "firewall.driver", "compute.driver", "compute.injection"),
        "images.group",
    ]
    changed = empty.run("config", "--changed").splitlines()
    assert [line.split()[1] for line in changed[2:]] == starred


def test_settings_of_plugins_count(empty: Shell) -> None:
    with empty.config_path.open("a") as file:
        file.write("[plugins.compute.fake]\nvcpus = 8\n")
    lines = {line["name"]: line for line in empty.json("config", "--changed")}
    assert lines["plugins.compute.fake.vcpus"]["value"] == 8


def test_one_setting(empty: Shell) -> None:
    assert empty.run("config", "show", "api.threads") == (
        "api.threads = 8\n  requests that are served at once\n  int, default 8\n"
    )
    assert "api.port" in empty.run("config", "show", "api")
    assert "no setting 'api.colour'" in empty.fail("config", "show", "api.colour")


def test_plugins(empty: Shell) -> None:
    lines = {(line["group"], line["name"]): line for line in empty.json("plugins", "list")}
    fake = lines["compute", "fake"]
    assert set(fake) == {
        *("group", "name", "version", "distribution", "is_used", "settings", "problem")
    }
    assert fake["is_used"]
    assert "vcpus" in fake["settings"]
    assert not lines["scheduler", "chance"]["is_used"]
    assert lines["filter", "capacity"]["is_used"]
    assert [line for line in lines.values() if line["is_used"] and line["problem"]] == []
    printed = empty.run("plugins", "list", "weight").splitlines()
    assert printed[0].split() == [
        *("GROUP", "NAME", "VERSION", "DISTRIBUTION", "SETTINGS", "PROBLEM")
    ]
    assert all(line.startswith("*  weight") for line in printed[1:4])
    assert "no plugin group 'wheel'" in empty.fail("plugins", "list", "wheel")


def test_a_plugin_that_is_used_and_missing(empty: Shell) -> None:
    text = empty.config_path.read_text().replace('driver = "fake"', 'driver = "iron"')
    empty.config_path.write_text(text)
    printed = empty.run("plugins", "list", "compute", status=1)
    assert [line.split()[:3] for line in printed.splitlines() if "iron" in line] == [
        ["*", "compute", "iron"]
    ]
    assert "It is not installed." in printed
    assert "api.port" in empty.run("config")


PASSWORDS = {
    "postgresql://me:s3cret@host:5432/x": "postgresql://me:***@host:5432/x",
    "postgresql://me:s3@cr:et@host/x": "postgresql://me:***@host/x",
    "postgresql://host/x?user=me&password=s3cret&a=b": (
        "postgresql://host/x?user=me&password=***&a=b"
    ),
    "me:s3cret@host": "me:***@host",
    "sqlite:////var/lib/anynode/store.sqlite": "sqlite:////var/lib/anynode/store.sqlite",
    "": "",
}


@pytest.mark.parametrize("url", PASSWORDS)
def test_passwords_are_not_shown(empty: Shell, url: str) -> None:
    text = empty.config_path.read_text()
    empty.config_path.write_text(f'{text}\n[store]\nurl = "{url}"\n')
    (shown,) = empty.json("config", "show", "store.url")
    assert shown["value"] == PASSWORDS[url]
    assert "s3" not in empty.run("config")


BAD_URLS = {
    "nosuch://me:s3cret@host/x": "is no URL of a store",
    "postgresql://me:x@s3cret:s3cret@host/x": "is no URL of a store",
    "s3cret": "is no URL of a store",
    "mysql+pymysql://me:s3cret@host/x": "The driver for the store mysql+pymysql://me:***@host/x is",
}


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_used_is_a_sentence_without_it(empty: Shell, url: str) -> None:
    text = empty.config_path.read_text()
    empty.config_path.write_text(f'{text}\n[store]\nurl = "{url}"\n')
    said = empty.fail("user", "list")
    assert BAD_URLS[url] in said
    assert "s3cret" not in said
    assert "hint: " in said


def test_a_bus_that_there_is_not_is_named_without_its_password(empty: Shell) -> None:
    text = empty.config_path.read_text()
    empty.config_path.write_text(f'{text}\n[bus]\nurl = "redis://me:s3cret@host/"\n')
    assert "There is no bus for 'redis://me:***@host/'" in empty.fail("run")
