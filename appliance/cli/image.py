"""``anynode image``: what instances boot from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.access import Access, pass_access
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
            store, access.config, file, wanted, project_name or "", progress
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
    from appliance.store import identity, images

    found, projects = access.read(
        lambda tx: (images.list_all(tx), {p.project_id: p.name for p in identity.list_projects(tx)})
    )
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one.image_id,
            one.name,
            one.kind,
            one.format,
            size(one.size_bytes),
            "public" if one.is_public else "private",
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


@image.command("delete")
@click.argument("image_id")
@pass_access
def delete(access: Access, image_id: str) -> None:
    """Take an image out of use; instances made from it go on."""
    from appliance.store import images

    access.change("DeleteImage", image_id, lambda tx: images.delete(tx, image_id))
    say(f"Deleted image {image_id}.")
