#!/usr/bin/env python3
"""Write the requirements files: every package pinned, with the hashes of its files.

    .venv/bin/python setup/lock.py             keep the installed and the locked versions
    .venv/bin/python setup/lock.py --upgrade   take the newest ones that fit each other

pip resolves the names and finds the files, as it is set up on this machine; addresses of package
indexes stay out of the result. The hashes are those of all files of a release that pip could choose
on x86_64 Linux with one of PYTHONS, from an index (a local folder may hold builds of one's own).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pip._internal.commands import create_command
from pip._internal.models.target_python import TargetPython

HERE = Path(__file__).resolve().parent
PYTHONS = ((3, 11), (3, 12), (3, 13))
HEADER = """\
# Made by setup/lock.py from {source}; change that and run it again.
"""


def canonical(name: str) -> str:
    """Return a package's name in the spelling that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pip(*arguments: str | Path) -> str:
    """Run this environment's pip and return what it printed; its errors go to the terminal."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def installed() -> dict[str, str]:
    """Return the version of every package of this environment."""
    found = json.loads(pip("list", "--format", "json", "--exclude-editable"))
    return {canonical(item["name"]): item["version"] for item in found}


def locked(file: Path) -> dict[str, str]:
    """Return the versions that a requirements file pins; nothing when there is none."""
    text = file.read_text() if file.exists() else ""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def resolve(source: Path, constraints: dict[str, str]) -> dict[str, str]:
    """Return the versions of everything that the names in a file need."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in constraints.items())
        file.flush()
        report = json.loads(
            pip(
                *("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"),
                *("-r", source, "-c", file.name),
            )
        )
    metadata = [item["metadata"] for item in report["install"]]
    return {canonical(item["name"]): item["version"] for item in metadata}


def finders() -> list[Any]:
    """Return pip's own search, once for each Python that is supported."""
    command: Any = create_command("download")
    options, _ = command.parse_args(["--quiet", "nothing"])
    session = command._build_session(options)
    return [
        command._build_package_finder(
            options=options, session=session, target_python=TargetPython(py_version_info=version)
        )
        for version in PYTHONS
    ]


def hashes_of(name: str, version: str, searches: list[Any]) -> list[str]:
    """Return the hashes of a release's files; some distribution must offer at least one."""
    found = {
        candidate.link.hash
        for search in searches
        for candidate in search.find_all_candidates(name)
        if str(candidate.version) == version
        and candidate.link.scheme != "file"
        and candidate.link.hash_name == "sha256"
    }
    if not found:
        raise SystemExit(f"lock: no index offers a file of {name} {version} with a SHA-256")
    return sorted(found)


def write(source: Path, versions: dict[str, str], hashes: dict[str, list[str]]) -> None:
    """Write the requirements file that belongs to a list of names."""
    lines = [HEADER.format(source=source.name)]
    for name, version in sorted(versions.items()):
        options = "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes[name])
        lines.append(f"{name}=={version}{options}\n")
    source.with_suffix(".txt").write_text("".join(lines))


def main() -> None:
    """Resolve, look the files up, and write all requirements files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = parser.parse_args()
    constraints = {} if options.upgrade else installed()
    # The interpreter's environment comes with an old one, and nothing else depends on which.
    constraints.pop("setuptools", None)
    versions = resolve(HERE / "requirements.in", constraints)
    build = resolve(HERE / "requirements-build.in", versions)
    kept = {} if options.upgrade else locked(HERE / "requirements-clients.txt")
    clients = resolve(HERE / "requirements-clients.in", {**kept, **versions})
    sandbox = resolve(HERE / "requirements-sandbox.in", versions)
    compared = {} if options.upgrade else locked(HERE / "requirements-bench.txt")
    bench = resolve(HERE / "requirements-bench.in", {**compared, **versions})
    searches = finders()
    everything = {**bench, **clients, **versions}
    hashes = {name: hashes_of(name, version, searches) for name, version in everything.items()}
    write(HERE / "requirements.in", versions, hashes)
    write(HERE / "requirements-build.in", build, hashes)
    write(HERE / "requirements-clients.in", clients, hashes)
    write(HERE / "requirements-sandbox.in", sandbox, hashes)
    write(HERE / "requirements-bench.in", bench, hashes)
    print(f"lock: {len(everything)} packages, {sum(map(len, hashes.values()))} files")


if __name__ == "__main__":
    main()
