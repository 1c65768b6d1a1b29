"""Throw-away distributions: a .dist-info folder with entry points, and modules beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path


def write_distribution(
    folder: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], **modules: str
) -> Path:
    """Write a distribution into a folder that is, or will be, on ``sys.path``.

    ``entry_points`` maps a group to short names to modules; ``modules`` are their texts.
    """
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, names in entry_points.items():
        lines += [f"[{group}]", *(f"{short} = {module}" for short, module in names.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(text))
    return folder
