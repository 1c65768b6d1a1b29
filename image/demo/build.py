#!/usr/bin/python3
"""Build the demo image, a small Linux for trying the node out, from Debian's packages.

Writes vmlinuz, initrd.img and root.qcow2 to the output folder. Nothing is installed, mounted or
run as root: packages are downloaded and unpacked, the file system is written by mkfs.ext4 itself.
The standard library is enough, so that it runs before there is a Python environment.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
DEFAULT_OUTPUT = Path("/var/cache/anynode/demo-image")
OUTPUTS = ("vmlinuz", "initrd.img", "root.qcow2")
STAMP = "build.json"
ROOT_SIZE_MIB = 256
ROOT_UUID = "5d0b8b2c-7a0e-4a43-9a6d-2f1c1d7a0a11"
MADE_AT = 1700000000  # the date of every file: nothing in the image says when it was built

# The first one that the distribution has: Debian's, then Ubuntu's.
KERNELS = ("linux-image-cloud-amd64", "linux-image-virtual")
PROGRAMS = ("busybox-static", "dropbear-bin")
TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "mkfs.ext4", "debugfs", "qemu-img")

# In the order of loading. The initial RAM disk needs no more than what finds the root disk.
MODULES = {
    "initramfs": "virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci "
    "virtio_blk",
    "rootfs": "failover net_failover virtio_net virtio-rng virtio_balloon button evdev",
    "disk": "cdrom isofs fat vfat nls_cp437 nls_ascii nls_iso8859-1 nls_utf8",
}

FOLDERS = "bin sbin usr/bin usr/sbin lib/modules dev proc sys run tmp mnt root/.ssh var/lib var/log"


class BuildError(Exception):
    """Something the user can do something about; its text says what."""


@dataclass(kw_only=True)
class Build:
    """One run: where it works, and when it began."""

    work: Path
    quiet: bool = False
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"[{time.monotonic() - self.started:5.1f} s] demo image: {text}", flush=True)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program and return what it printed; its last lines are in the error when it fails."""
    text = [str(word) for word in command]
    done = subprocess.run(
        text,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        tail = "\n".join("    " + line for line in done.stdout.strip().splitlines()[-8:])
        raise BuildError(f"'{' '.join(text[:6])}' failed with status {done.returncode}:\n{tail}")
    return done.stdout


def digest_of_inputs() -> str:
    """Hash everything in this folder that decides what the image becomes."""
    digest = hashlib.sha256()
    for path in [Path(__file__).resolve(), *walk(HERE / "initramfs"), *walk(HERE / "rootfs")]:
        digest.update(f"{path.relative_to(HERE)}\0{path.lstat().st_mode & 0o111}\0".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def walk(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def state_of_package_lists() -> str:
    """Tell one state of apt's lists from another without the second that asking apt takes."""
    lists = Path("/var/lib/apt/lists")
    if not lists.is_dir():
        return ""
    facts = sorted(
        f"{entry.name} {entry.stat().st_mtime_ns}" for entry in os.scandir(lists) if entry.is_file()
    )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def read_stamp(output: Path) -> dict[str, object]:
    """Return what the last build left behind; {} when it is missing, damaged or incomplete."""
    try:
        stamp = json.loads((output / STAMP).read_text())
        sizes = stamp["sizes"]
        whole = all((output / name).stat().st_size == sizes[name] for name in OUTPUTS)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return stamp if whole else {}


def known_packages(names: list[str]) -> dict[str, dict[str, str]]:
    """Return the records that apt has for packages, without those that it does not know."""
    asked = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    records = {}
    for block in asked.stdout.split("\n\n"):
        record = dict(re.findall(r"^([A-Za-z-]+): (.*)$", block, re.MULTILINE))
        if "Package" in record:
            records[record["Package"]] = record
    return records


def choose_packages() -> dict[str, str]:
    """Return name and version of every package that goes into the image; {} without apt's lists."""
    top = known_packages([*KERNELS, *PROGRAMS])
    kernel = next((name for name in KERNELS if name in top), None)
    if kernel is None or any(name not in top for name in PROGRAMS):
        return {}
    wanted = set(PROGRAMS) | {
        name
        for name in dependencies(top[kernel])
        if name.startswith(("linux-image", "linux-modules"))
    }
    found: dict[str, str] = {}
    while wanted:
        records = known_packages(sorted(wanted))
        if missing := wanted - records.keys():
            raise BuildError(f"apt knows no package {' '.join(sorted(missing))}")
        found |= {name: record["Version"] for name, record in records.items()}
        wanted = {
            name
            for record in records.values()
            for name in dependencies(record)
            if name.startswith(("lib", "zlib", "linux-modules"))
        } - found.keys()
    return found


def dependencies(record: dict[str, str]) -> list[str]:
    """Return the names in Depends; of alternatives the first."""
    parts = [part.strip() for part in record.get("Depends", "").split(",") if part.strip()]
    return [re.split(r"[\s(|:]", part, maxsplit=1)[0] for part in parts]


def download(build: Build, versions: dict[str, str]) -> Path:
    """Download and unpack packages; return the folder that holds their files."""
    debs, unpacked = build.work / "debs", build.work / "unpacked"
    debs.mkdir()
    unpacked.mkdir()
    # Root's apt gives the download to the user _apt, which cannot write here.
    as_is = ("-o", "APT::Sandbox::User=root")
    build.say(f"download {len(versions)} packages")
    run("apt-get", *as_is, "-qq", "download", *sorted(versions), cwd=debs)
    build.say("unpack")
    for deb in sorted(debs.glob("*.deb")):
        run("dpkg-deb", "-x", deb, unpacked)
        deb.unlink()
    return unpacked


def fetch_packages(build: Build) -> tuple[dict[str, str], Path]:
    """Choose and download packages; as root, refresh apt's lists when they turn out to be stale."""
    error: BuildError | None = None
    for attempt in ("as it is", "after an update"):
        if attempt == "after an update" and os.geteuid() != 0:
            break
        try:
            if attempt == "after an update":
                build.say("apt's package lists are missing or old: apt-get update")
                run("apt-get", "-o", "DPkg::Lock::Timeout=600", "-qq", "update")
            if versions := choose_packages():
                return versions, download(build, versions)
        except BuildError as problem:
            error = problem
            for name in ("debs", "unpacked"):
                shutil.rmtree(build.work / name, ignore_errors=True)
    text = str(error) if error else f"apt has no {' or '.join(KERNELS)}, {', '.join(PROGRAMS)}"
    raise BuildError(
        f"cannot download the packages of the demo image: {text}\n"
        "Check the network and /etc/apt, run 'apt-get update' as root, and try again."
    ) from error


def read_module(path: Path) -> bytes:
    """Return a kernel module uncompressed: busybox loads no other."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], stdout=subprocess.PIPE, check=True).stdout
    return path.read_bytes()


def copy_modules(modules: Path, target: Path, group: str) -> None:
    """Copy a group of modules and write the order they load in; what is built in is left out."""
    kept = []
    available = {
        path.name.split(".ko")[0]: path for path in modules.rglob("*.ko*") if path.is_file()
    }
    for name in MODULES[group].split():
        if name in available:
            (target / f"{name}.ko").write_bytes(read_module(available[name]))
            kept.append(name)
        elif f"/{name}.ko" not in (modules / "modules.builtin").read_text():
            raise BuildError(f"the kernel in {modules.name} has no module {name}")
    (target / group).write_text("".join(f"{name}\n" for name in kept))


def write_cpio(folder: Path, target: Path) -> None:
    """Write a folder as a gzipped cpio archive (newc), owned by root, with a console device."""
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as archive:
        number = 0

        def add(
            name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
        ) -> None:
            nonlocal number
            number += 1
            values = (number, mode, 0, 0, 1, MADE_AT, len(content), 0, 0, *device, len(name) + 1, 0)
            header = ("070701" + "".join(f"{value:08x}" for value in values)).encode()
            entry = header + name.encode() + b"\0"
            archive.write(entry + b"\0" * (-len(entry) % 4))
            archive.write(content + b"\0" * (-len(content) % 4))

        for path in walk(folder):
            if path.is_dir():
                add(str(path.relative_to(folder)), 0o040755)
            else:
                add(str(path.relative_to(folder)), 0o100755, path.read_bytes())
        # The kernel opens this before /init could mount /dev.
        add("dev/console", 0o020600, device=(5, 1))
        add("TRAILER!!!", 0)


def make_initramfs(unpacked: Path, modules: Path, work: Path, target: Path) -> None:
    """Write the initial RAM disk: busybox, the drivers of the root disk, our init."""
    root = work / "initramfs"
    for name in ("bin", "dev", "proc", "newroot", "lib/modules"):
        (root / name).mkdir(parents=True)
    shutil.copyfile(find(unpacked, "busybox"), root / "bin/busybox")
    shutil.copyfile(HERE / "initramfs/init", root / "init")
    copy_modules(modules, root / "lib/modules", "initramfs")
    write_cpio(root, target)


def find(folder: Path, name: str) -> Path:
    """Return the one program or library of that name, with symbolic links followed."""
    for path in walk(folder):
        if path.name == name and path.exists() and not path.is_dir() and "share" not in path.parts:
            return path
    raise BuildError(f"the packages contain no file {name}")


def needed_libraries(binary: Path) -> list[str]:
    """Return the libraries that a 64-bit ELF file asks for, read from its dynamic section."""
    content = binary.read_bytes()

    def number(offset: int, size: int) -> int:
        return int.from_bytes(content[offset : offset + size], "little")

    if content[:5] != b"\x7fELF\x02":
        return []
    table, entry_size, entries = number(0x20, 8), number(0x36, 2), number(0x38, 2)
    headers = [table + index * entry_size for index in range(entries)]
    loads = [h for h in headers if number(h, 4) == 1]
    wanted: list[int] = []
    strings = 0
    for header in headers:
        if number(header, 4) != 2:  # PT_DYNAMIC
            continue
        start, size = number(header + 8, 8), number(header + 32, 8)
        for at in range(start, start + size, 16):
            if number(at, 8) == 1:  # DT_NEEDED
                wanted.append(number(at + 8, 8))
            elif number(at, 8) == 5:  # DT_STRTAB, an address: find the segment that holds it
                address = number(at + 8, 8)
                load = next(
                    h for h in loads if 0 <= address - number(h + 16, 8) < number(h + 32, 8)
                )
                strings = address - number(load + 16, 8) + number(load + 8, 8)
    return [content[strings + at : content.index(0, strings + at)].decode() for at in wanted]


def copy_libraries(unpacked: Path, root: Path, binaries: list[Path]) -> None:
    """Copy the loader and every library that the binaries need, and those need, to the root."""
    folder = root / "lib/x86_64-linux-gnu"
    folder.mkdir(parents=True)
    (root / "lib64").mkdir()
    loader = "ld-linux-x86-64.so.2"
    shutil.copy(find(unpacked, loader), root / "lib64" / loader)
    waiting = [name for binary in binaries for name in needed_libraries(binary)]
    waiting += ["libnss_files.so.2", "libnss_dns.so.2"]  # opened by name, for users and addresses
    while waiting:
        name = waiting.pop()
        if name == loader or (folder / name).exists():
            continue
        shutil.copy(find(unpacked, name), folder / name)
        waiting += needed_libraries(folder / name)


def make_root(unpacked: Path, modules: Path, root: Path) -> None:
    """Fill a folder with the root file system."""
    shutil.copytree(HERE / "rootfs", root, symlinks=True)
    for name in FOLDERS.split():
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var/run").symlink_to("/run")
    busybox = root / "bin/busybox"
    shutil.copyfile(find(unpacked, "busybox"), busybox)
    busybox.chmod(0o755)
    for applet in run(busybox, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    for applet in ("init", "getty", "poweroff", "reboot", "halt", "modprobe"):
        (root / "sbin" / applet).symlink_to("../bin/busybox")
    binaries = []
    for name in ("usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/bin/dbclient"):
        shutil.copy(find(unpacked, Path(name).name), root / name)
        binaries.append(root / name)
    (root / "usr/bin/ssh").symlink_to("dbclient")
    copy_libraries(unpacked, root, binaries)
    for group in ("rootfs", "disk"):
        copy_modules(modules, root / "lib/modules", group)
    set_modes(root)


def set_modes(root: Path) -> None:
    """Give every file the mode and time it shall have, whatever the checkout's umask was."""
    scripts = ("etc/rc", "etc/rc.shutdown", "etc/udhcpc.script", "etc/acpi/PWRF/00000080")
    programs = ("bin", "sbin", "usr/bin", "usr/sbin", "lib64", "lib/x86_64-linux-gnu")
    for path in [root, *walk(root)]:
        name = str(path.relative_to(root))
        if not path.is_symlink():
            executable = path.is_dir() or name in scripts or os.path.dirname(name) in programs
            path.chmod(0o755 if executable else 0o644)
    for name, mode in (
        ("tmp", 0o1777),
        ("root", 0o700),
        ("root/.ssh", 0o700),
        ("etc/passwd", 0o644),
    ):
        (root / name).chmod(mode)
    for path in [root, *walk(root)]:
        os.utime(path, (MADE_AT, MADE_AT), follow_symlinks=False)


def make_disk(root: Path, work: Path, target: Path) -> None:
    """Write the root folder as an ext4 file system in a compressed qcow2 image."""
    raw = work / "root.raw"
    with raw.open("wb") as disk:
        disk.truncate(ROOT_SIZE_MIB << 20)
    run(
        "mkfs.ext4", "-q", "-F", "-L", "anynode-demo", "-U", ROOT_UUID, "-m", "0",
        # All inode tables are written now, as holes: the instance's kernel need not do it later.
        "-E", f"root_owner=0:0,hash_seed={ROOT_UUID},lazy_itable_init=0,lazy_journal_init=0",
        "-d", root, raw,
    )  # fmt: skip
    if os.geteuid() != 0:
        own_by_root(root, raw, work)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, target)


def own_by_root(root: Path, raw: Path, work: Path) -> None:
    """Make root the owner of every file in the image: mkfs.ext4 copied the owner it saw."""
    lines = []
    for path in walk(root):
        name = path.relative_to(root)
        lines += [f'sif "/{name}" uid 0', f'sif "/{name}" gid 0']
    (work / "owners").write_text("\n".join(lines) + "\n")
    # debugfs ends with status 0 whatever happens, and echoes each command; other lines are errors.
    answer = run("debugfs", "-w", "-f", work / "owners", raw).splitlines()
    wrong = [line for line in answer if not line.startswith(("debugfs: sif", "debugfs 1."))]
    if wrong:
        raise BuildError(f"debugfs could not set owners: {wrong[0]}")


def make_image(build: Build) -> dict[str, str]:
    """Build the three files in the working folder; return the versions of the packages in them."""
    versions, unpacked = fetch_packages(build)
    modules = next(path for path in walk(unpacked) if path.parent.name == "modules")
    result = build.work / "result"
    result.mkdir()
    build.say(f"kernel {modules.name} and its initial RAM disk")
    shutil.copyfile(find(unpacked, f"vmlinuz-{modules.name}"), result / "vmlinuz")
    make_initramfs(unpacked, modules, build.work, result / "initrd.img")
    build.say("root file system")
    make_root(unpacked, modules, build.work / "root")
    make_disk(build.work / "root", build.work, result / "root.qcow2")
    return versions


def publish(result: Path, output: Path, stamp: dict[str, object]) -> None:
    """Put a finished build in the place of the one before it, if any."""
    for path in walk(result):
        path.chmod(0o644)
    (result / STAMP).write_text(json.dumps(stamp, indent=1, sort_keys=True) + "\n")
    result.chmod(0o755)
    old = result.with_name("old")
    if output.exists():
        output.rename(old)
    result.rename(output)


def remove_stale(output: Path) -> None:
    """Remove the working folders of builds that were killed; the caller holds the lock."""
    for folder in output.parent.iterdir():
        # As tempfile names them: another output may begin with the name of this one.
        if re.fullmatch(rf"\.{re.escape(output.name)}-[a-z0-9_]{{8}}", folder.name):
            shutil.rmtree(folder)


def prepare(output: Path, *, force: bool) -> None:
    """Build the image unless the one in the output folder is up to date."""
    inputs, lists = digest_of_inputs(), state_of_package_lists()
    stamp = {} if force else read_stamp(output)
    if stamp and stamp["inputs"] == inputs:
        if stamp["lists"] == lists:
            return
        # A machine without lists, or without these packages, keeps the image that it has.
        if choose_packages() in ({}, stamp["versions"]):
            replacement = output / f".{STAMP}"
            replacement.write_text(
                json.dumps({**stamp, "lists": lists}, indent=1, sort_keys=True) + "\n"
            )
            replacement.rename(output / STAMP)
            return
    if output.exists() and not (output / STAMP).exists() and any(output.iterdir()):
        raise BuildError(f"{output} holds other files: choose an empty or new folder with --output")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise BuildError(f"the program '{tool}' is missing: run 'make setup' first")
    remove_stale(output)
    # On the same file system, so that the finished folder can be renamed into place.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as work:
        build = Build(work=Path(work))
        versions = make_image(build)
        result = Path(work) / "result"
        sizes = {name: (result / name).stat().st_size for name in OUTPUTS}
        facts: dict[str, object] = {
            "inputs": inputs,
            "lists": state_of_package_lists(),
            "versions": versions,
            "sizes": sizes,
        }
        publish(result, output, facts)
        summary = ", ".join(f"{name} {size >> 10} KiB" for name, size in sizes.items())
        build.say(f"{output} is ready: {summary}")


def locked(output: Path) -> Iterator[None]:
    """Let one build at a time work on an output folder; the lock goes with the process."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with (output.parent / f".{output.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("demo image: another build is running, waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fail(text: str) -> NoReturn:
    print(f"demo image: {text}", file=sys.stderr)
    raise SystemExit(1)


def main() -> None:
    """Read the command line, build, and turn expected errors into one message."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="build even when nothing has changed")
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        fail(f"it is built for x86_64, and this machine is {platform.machine()}")
    # A plain kill ends like Ctrl-C: temporary folders are removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    output = options.output.absolute()
    try:
        for _ in locked(output):
            prepare(output, force=options.force)
    except BuildError as error:
        fail(str(error))
    except PermissionError as error:
        fail(f"cannot write {error.filename}: run it as root, or choose a folder with --output")
    except KeyboardInterrupt:
        fail("interrupted, nothing was changed")


if __name__ == "__main__":
    main()
