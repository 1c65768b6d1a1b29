"""``anynode image``: what instances boot from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, operator_name, pass_access
from appliance.cli.output import (
    console,
    json_option,
    moment,
    print_json,
    print_table,
    say,
    size,
)

if TYPE_CHECKING:
    from appliance.images.store import Progress
    from appliance.store import Transaction
    from appliance.store.images import Image

KINDS = {"kernel": "kernel", "ramdisk": "ramdisk", "raw": "machine", "qcow2": "machine"}


@click.group()
def image() -> None:
    """What instances boot from: disks, kernels and ramdisks."""


@image.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="Name of the image.")
@click.option(
    "--format",
    "image_format",
    required=True,
    type=click.Choice(tuple(KINDS)),
    help="What the file is; it is checked, never guessed.",
)
@click.option("--description", default="", help="A sentence about it.")
@click.option("--kernel", "kernel_id", metavar="AKI", help="Kernel that a disk boots with.")
@click.option("--ramdisk", "ramdisk_id", metavar="ARI", help="Ramdisk of that kernel.")
@click.option("--command-line", default="", help="Command line of that kernel.")
@click.option("--public", "is_public", is_flag=True, help="Let all projects use it.")
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="K=V",
    help="A property, e.g. injection=none.",
)
@click.option("--project", "project_name", help="Whose it is; else the operator's.")
@json_option
@pass_access
def import_file(
    access: Access,
    file: Path,
    name: str,
    image_format: str,
    description: str,
    kernel_id: str | None,
    ramdisk_id: str | None,
    command_line: str,
    is_public: bool,
    properties: tuple[str, ...],
    project_name: str | None,
    as_json: bool,
) -> None:
    """Check a file, copy it into the image store, and register it.

    The same file with the same words is the same image: importing it again changes nothing.
    """
    from appliance import image_import

    if not project_name and not is_public:
        raise click.UsageError("Say whose image it is (--project NAME), or that it is --public.")
    wanted = image_import.Wanted(
        kind=KINDS[image_format],
        name=name,
        format=image_format,
        description=description,
        kernel_id=kernel_id,
        ramdisk_id=ramdisk_id,
        kernel_command_line=command_line,
        is_public=is_public,
        properties=_properties(properties),
    )
    with access.store() as store, _progress(f"Importing {file.name}", not as_json) as progress:
        imported = image_import.import_image(
            store,
            access.config,
            file,
            wanted,
            project_name or "",
            progress,
            actor=operator_name(),
        )
    if as_json:
        print_json(imported.image)
    elif imported.is_new:
        say(f"Imported {imported.image.image_id} ({name}), sha256 {imported.image.sha256}.")
    else:
        say(f"It is there already: {imported.image.image_id} ({name}).")


def _properties(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.")
        found[key] = value
    return found


@contextmanager
def _progress(title: str, is_wanted: bool) -> Iterator[Progress]:
    """Show a bar on a terminal; nothing elsewhere."""
    from appliance.images.store import ignore_progress

    target = console(to_stderr=True)
    if not is_wanted or not target.is_terminal:
        yield ignore_progress
        return
    from rich import progress

    columns = (
        progress.TextColumn(title),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    )
    with progress.Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@image.command("list")
@json_option
@pass_access
def list_all(access: Access, as_json: bool) -> None:
    """List the images of all projects, newest first."""
    from appliance.store import identity, image_shares, images

    def read(tx: Transaction) -> tuple[list[Image], dict[str, list[str]], dict[str, str]]:
        found = images.list_all(tx)
        shares = image_shares.of(tx, [one.image_id for one in found])
        return found, shares, {p.project_id: p.name for p in identity.list_projects(tx)}

    found, shares, projects = access.read(read)
    if as_json:
        print_json([asdict(one) | {"shared_with": shares.get(one.image_id, [])} for one in found])
        return
    rows = [
        (
            one.image_id,
            one.name,
            one.kind,
            one.format,
            size(one.size_bytes),
            _access_of(one, [projects.get(each, each) for each in shares.get(one.image_id, ())]),
            projects.get(one.project_id, "operator"),
            one.state,
            moment(one.created_at),
        )
        for one in found
    ]
    print_table(
        ("id", "name", "kind", "format", "size>", "access", "project", "state", "created"),
        rows,
        "There are no images; `anynode image import FILE …` brings one in.",
    )


def _access_of(image: Image, shared_with: list[str]) -> str:
    if image.is_public:
        return "public"
    return f"shared: {', '.join(shared_with)}" if shared_with else "private"


@image.command("publish")
@click.argument("image_id")
@pass_access
def publish(access: Access, image_id: str) -> None:
    """Let all projects launch an image."""
    _publish(access, image_id, is_public=True)
    say(f"All projects can launch {image_id}.")


@image.command("unpublish", short_help="Let only its owner, and whom it is shared with, launch it.")
@click.argument("image_id")
@pass_access
def unpublish(access: Access, image_id: str) -> None:
    """Let only its owner, and the projects that it is shared with, launch an image.

    Instances that were made from it go on.
    """
    _publish(access, image_id, is_public=False)
    say(f"Only its owner, and whom it is shared with, can launch {image_id}.")


def _publish(access: Access, image_id: str, *, is_public: bool) -> None:
    from appliance.store import image_shares

    access.change(
        "PublishImage" if is_public else "UnpublishImage",
        image_id,
        lambda tx: image_shares.publish(tx, image_id, is_public=is_public),
    )


@image.command("share")
@click.argument("image_id")
@click.argument("projects", metavar="PROJECT...", nargs=-1, required=True)
@pass_access
def share(access: Access, image_id: str, projects: tuple[str, ...]) -> None:
    """Let projects launch an image, beside its owner."""
    from appliance.store import image_shares

    _for_projects(access, "ShareImage", image_id, projects, image_shares.share)
    say(f"{', '.join(projects)} can launch {image_id}.")


@image.command("unshare", short_help="Let projects launch an image no longer.")
@click.argument("image_id")
@click.argument("projects", metavar="PROJECT...", nargs=-1, required=True)
@pass_access
def unshare(access: Access, image_id: str, projects: tuple[str, ...]) -> None:
    """Let projects launch an image no longer; their instances made from it go on."""
    from appliance.store import image_shares

    _for_projects(access, "UnshareImage", image_id, projects, image_shares.unshare)
    say(f"{image_id} is not shared with {', '.join(projects)}.")


def _for_projects(
    access: Access,
    action: str,
    image_id: str,
    projects: tuple[str, ...],
    work: Callable[[Transaction, str, list[str]], None],
) -> None:
    from appliance.store import identity, images

    def change(tx: Transaction) -> None:
        images.check_exists(tx, image_id)
        work(tx, image_id, [identity.find_project(tx, each).project_id for each in projects])

    access.change(action, " ".join((image_id, *projects)), change)


@image.command("delete")
@click.argument("image_id")
@pass_access
def delete(access: Access, image_id: str) -> None:
    """Take an image out of use; instances made from it go on."""
    from appliance.store import images

    access.change("DeleteImage", image_id, lambda tx: images.delete(tx, image_id))
    say(f"Deleted image {image_id}.")
