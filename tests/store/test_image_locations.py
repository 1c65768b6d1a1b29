"""Which node holds which image, and which images want a second node."""

from __future__ import annotations

import hashlib

from appliance.model import ImageHolder
from appliance.store import Transaction, image_locations, images, members, nodes
from appliance.store.images import NewImage
from appliance.store.nodes import Node
from appliance.store.schema import instances
from tests.store.conftest import Site


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def add_image(site: Site, name: str, *, state: str = "available") -> str:
    new = NewImage(
        project_id="p", kind="machine", name=name, format="raw", sha256=sha(name), size_bytes=7
    )
    return site.store.transaction(lambda tx: images.create(tx, new, state=state)).image_id


def add_member(
    site: Site,
    name: str,
    *,
    is_up: bool = True,
    is_control: bool = False,
    roles: tuple[str, ...] = ("compute",),
) -> str:
    def add(tx: Transaction) -> None:
        node = Node(node_id=name, name=name, zone="z", roles=roles)
        members.enrol(tx, node, certificate="", address=f"{name}:1", approved=(0, 0, 0))
        members.certify(tx, name, certificate="", is_control=is_control, address=f"{name}:1")
        if is_up:
            nodes.seen(tx, name, "boot", nodes.Condition())

    site.store.transaction(add)
    return name


def hold(site: Site, node_id: str, *names: str) -> None:
    site.store.transaction(
        lambda tx: image_locations.write(tx, node_id, [sha(name) for name in names])
    )


def held(site: Site, node_id: str) -> set[str]:
    return site.store.read(lambda tx: image_locations.held_by(tx, node_id))


def holders(site: Site, name: str, but: str = "") -> list[ImageHolder]:
    found = site.store.read(lambda tx: image_locations.holders(tx, [sha(name)], but))
    return found.get(sha(name), [])


def test_what_a_node_says_counts(site: Site) -> None:
    add_image(site, "a")
    add_image(site, "b")
    add_member(site, "n1")
    hold(site, "n1", "a", "b")
    hold(site, "n1", "a", "b")
    assert held(site, "n1") == {sha("a"), sha("b")}
    hold(site, "n1", "b")
    assert held(site, "n1") == {sha("b")}


def test_what_is_no_image_is_not_written(site: Site) -> None:
    add_member(site, "n1")
    hold(site, "n1", "made-up")
    assert held(site, "n1") == set()


def test_what_was_imported_is_written_once(site: Site) -> None:
    add_image(site, "a")
    for _ in range(2):
        site.store.transaction(lambda tx: image_locations.add(tx, sha("a"), "n1"))
    assert held(site, "n1") == {sha("a")}


def test_those_that_are_down_are_asked_last_and_removed_ones_never(site: Site) -> None:
    add_image(site, "a")
    for name in ("n1", "n2", "n3", "n4"):
        add_member(site, name, is_up=name != "n1")
        hold(site, name, "a")
    site.store.transaction(lambda tx: members.expel(tx, "n4"))
    assert [one.node_id for one in holders(site, "a")] == ["n2", "n3", "n1"]
    assert holders(site, "a")[0].address == "n2:1"
    assert [one.node_id for one in holders(site, "a", but="n2")] == ["n3", "n1"]


def test_an_image_on_one_node_wants_another(site: Site) -> None:
    image_id = add_image(site, "a")
    add_member(site, "n1", is_control=True)
    hold(site, "n1", "a")
    assert site.store.read(image_locations.lonely) == [], "there is no other node"
    add_member(site, "api", roles=("api",))
    add_member(site, "down", is_up=False)
    assert site.store.read(image_locations.lonely) == [], "none that holds instances"
    add_member(site, "n2", is_control=True)
    found = site.store.read(image_locations.lonely)
    assert [(one.image.image_id, one.image.size_bytes, one.node_id) for one in found] == [
        (image_id, 7, "n2")
    ]
    hold(site, "n2", "a")
    assert site.store.read(image_locations.lonely) == []
    site.store.transaction(lambda tx: members.expel(tx, "n2"))
    add_member(site, "n3")
    assert [one.node_id for one in site.store.read(image_locations.lonely)] == ["n3"]


def takers(site: Site) -> set[str]:
    """Return who may be asked to fetch the only image: any of them, as one never knows."""
    asked = (site.store.read(image_locations.lonely) for _ in range(40))
    return {one.node_id for found in asked for one in found}


def test_no_hypervisors_word_keeps_a_second_copy_away(site: Site) -> None:
    """It may hold what it says or not: with any one of them gone, two nodes are to have it."""
    add_image(site, "a")
    add_member(site, "n1", is_control=True)
    hold(site, "n1", "a")
    for name in ("liar", "n2", "n3"):
        add_member(site, name)
    hold(site, "liar", "a")
    assert takers(site) == {"n2", "n3"}
    hold(site, "n2", "a")
    assert takers(site) == set(), "one of the two is honest, or both are not ours to help"


def test_a_copy_on_a_second_control_node_is_enough(site: Site) -> None:
    add_image(site, "a")
    add_member(site, "n1", is_control=True)
    add_member(site, "n2", is_control=True)
    add_member(site, "n3")
    hold(site, "n1", "a")
    hold(site, "n3", "a")
    assert takers(site) == {"n2"}
    hold(site, "n2", "a")
    assert takers(site) == set()


def test_what_only_hypervisors_hold_wants_three(site: Site) -> None:
    add_image(site, "a")
    for name in ("n1", "n2", "n3", "n4"):
        add_member(site, name)
    for name in ("n1", "n2"):
        hold(site, name, "a")
    assert takers(site) == {"n3", "n4"}
    hold(site, "n3", "a")
    assert takers(site) == set()


def test_the_same_bytes_twice_are_fetched_once(site: Site) -> None:
    add_image(site, "a")
    add_image(site, "a")
    add_image(site, "b", state="failed")
    add_member(site, "n1")
    add_member(site, "n2")
    hold(site, "n1", "a", "b")
    assert len(site.store.read(image_locations.lonely)) == 1


def test_a_deleted_image_is_left_alone(site: Site) -> None:
    image_id = add_image(site, "a")
    add_member(site, "n1")
    add_member(site, "n2")
    hold(site, "n1", "a")
    site.store.transaction(lambda tx: images.delete(tx, image_id))
    assert site.store.read(image_locations.lonely) == []


def test_an_instance_wants_its_disk_and_what_it_boots(site: Site) -> None:
    add_image(site, "other")
    kernel, ramdisk = (add_image(site, name) for name in ("kernel", "ramdisk"))
    [plain, booting] = site.store.transaction(lambda tx: site.launch(tx, count=2))

    def boot_from(tx: Transaction) -> None:
        statement = instances.update().where(instances.c.id == booting)
        tx.execute(statement.values(kernel_id=kernel, ramdisk_id=ramdisk))

    site.store.transaction(boot_from)

    def wanted(instance_id: str) -> set[str]:
        return set(site.store.read(lambda tx: image_locations.wanted_by(tx, instance_id)))

    [own] = wanted(plain)
    assert wanted(booting) == {own, sha("kernel"), sha("ramdisk")}
