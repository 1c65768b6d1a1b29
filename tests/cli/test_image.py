"""Images by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shell import Shell


def test_import_list_delete(shell: Shell) -> None:
    image_id = shell.import_image()
    assert image_id.startswith("ami-")
    (one,) = shell.json("image", "list")
    assert {key: one[key] for key in ("kind", "format", "is_public", "state", "size_bytes")} == {
        "kind": "machine",
        "format": "raw",
        "is_public": True,
        "state": "available",
        "size_bytes": 1 << 20,
    }
    lines = shell.run("image", "list").splitlines()
    assert lines[0].split() == [
        *("ID", "NAME", "KIND", "FORMAT", "SIZE", "ACCESS", "PROJECT", "STATE", "CREATED")
    ]
    assert lines[1].split()[:8] == [
        *(image_id, "blank", "machine", "raw", "1.0", "MiB", "public", "operator")
    ]
    shell.run("image", "delete", image_id)
    assert shell.json("image", "list") == []
    assert "There is no image" in shell.fail("image", "delete", image_id)


def test_same_file_again_is_the_same_image(shell: Shell) -> None:
    path = str(shell.folder / "blank.img")
    image_id = shell.import_image()
    words = ("image", "import", path, "--name", "blank", "--format", "raw", "--public")
    assert shell.run(*words) == f"It is there already: {image_id} (blank).\n"
    shell.run(*words, "--property", "injection=none")
    assert len(shell.json("image", "list")) == 2


def boot_file(shell: Shell, kind: str, content: bytes) -> str:
    path = shell.folder / kind
    path.write_bytes(content)
    words = ("image", "import", str(path), "--name", kind, "--format", kind, "--public")
    return str(shell.json(*words)["image_id"])


def test_kernel_and_ramdisk(shell: Shell) -> None:
    kernel_id = boot_file(shell, "kernel", b"MZ".ljust(4096, b"\0"))
    ramdisk_id = boot_file(shell, "ramdisk", b"070701".ljust(4096, b"\0"))
    assert (kernel_id[:4], ramdisk_id[:4]) == ("aki-", "ari-")
    disk = shell.folder / "disk"
    disk.write_bytes(bytes(4096))
    words = ("image", "import", str(disk), "--name", "d", "--format", "raw", "--public")
    made = shell.json(
        *words, "--kernel", kernel_id, "--ramdisk", ramdisk_id, "--command-line", "root=/dev/vda"
    )
    assert (made["kernel_id"], made["ramdisk_id"]) == (kernel_id, ramdisk_id)
    assert made["kernel_command_line"] == "root=/dev/vda"
    assert "no kernel ari-" in shell.fail(*words, "--kernel", ramdisk_id)
    assert "without a kernel" in shell.fail(*words, "--ramdisk", ramdisk_id)


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (("--format", "raw"), 2, "Say whose image it is"),
        (("--format", "vmdk", "--public"), 2, "Invalid value"),
        (("--format", "qcow2", "--public"), 1, "was declared qcow2 and is"),
        (("--format", "raw", "--project", "none"), 1, "There is no project 'none'."),
        (("--format", "raw", "--public", "--property", "x"), 2, "not of the form KEY=VALUE"),
    ],
)
def test_refusals(shell: Shell, more: tuple[str, ...], status: int, said: str) -> None:
    path = shell.folder / "disk"
    path.write_bytes(bytes(4096))
    assert said in shell.fail("image", "import", str(path), "--name", "d", *more, status=status)
    assert shell.json("image", "list") == []


def test_missing_file(shell: Shell, tmp_path: Path) -> None:
    words = ("image", "import", str(tmp_path / "none"), "--name", "d", "--format", "raw")
    assert "Could not open" in shell.fail(*words, "--public")


def test_owner(shell: Shell) -> None:
    shell.give_key()
    path = shell.folder / "disk"
    path.write_bytes(bytes(4096))
    words = ("image", "import", str(path), "--name", "d", "--format", "raw", "--project", "demo")
    project_id = shell.json("project", "list")[0]["project_id"]
    assert shell.json(*words)["project_id"] == project_id
    assert "private  demo" in shell.run("image", "list")


def test_an_image_is_shared_and_published_and_back(shell: Shell) -> None:
    for name in ("owner", "friend"):
        shell.run("project", "create", name)
    path = shell.folder / "disk.img"
    path.write_bytes(b"disk".ljust(1 << 20, b"\0"))
    imported = ("import", str(path), "--name", "disk", "--format", "raw", "--project", "owner")
    image_id = shell.json("image", *imported)["image_id"]
    friend = next(p["project_id"] for p in shell.json("project", "list") if p["name"] == "friend")

    def listed() -> tuple[bool, list[str]]:
        [one] = shell.json("image", "list")
        return one["is_public"], one["shared_with"]

    assert listed() == (False, [])
    assert shell.run("image", "share", image_id, "friend") == f"friend can launch {image_id}.\n"
    assert listed() == (False, [friend])
    assert "shared: friend" in shell.run("image", "list")
    shell.run("image", "publish", image_id)
    assert listed() == (True, [friend])
    shell.run("image", "unpublish", image_id)
    shell.run("image", "unshare", image_id, "friend", "owner")
    assert listed() == (False, [])
    assert "has images" in shell.fail("project", "delete", "owner")
    done = [one["action"] for one in shell.json("audit")][2:]
    assert done == ["ImportImage", "ShareImage", "PublishImage", "UnpublishImage", "UnshareImage"]


def test_sharing_what_or_with_whom_is_not_there_is_an_error(shell: Shell) -> None:
    image_id = shell.import_image()
    nothing = "ami-0123456789abcdef0"
    assert "no project 'nobody'" in shell.fail("image", "share", image_id, "nobody")
    shell.run("project", "create", "friend")
    for words in (("share", nothing, "friend"), ("unshare", nothing, "friend")):
        assert f"There is no image {nothing}" in shell.fail("image", *words)
    for word in ("publish", "unpublish"):
        assert f"There is no image {nothing}" in shell.fail("image", word, nothing)
    assert "Missing argument" in shell.fail("image", "share", image_id, status=2)
