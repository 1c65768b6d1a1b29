"""The reference pages that are written from the code: ``python -m appliance.reference FOLDER``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from appliance import errors, hookspecs, model
from appliance.api.ec2 import action as ec2_action
from appliance.cli.reference import cli_page
from appliance.config import Config, settings_of
from appliance.hooks import hook_names

_WRITTEN = "<!-- Written by `python -m appliance.reference`; a test compares. -->"
_EC2_TEXT = """\
The API answers at `/` and `/services/Cloud` on port 8773 (setting `api.port`), in the Query
protocol of version 2016-11-15, to GET and POST, with Signature V4. Every reply bears a request id,
which is the id of the timeline (`anynode trace`). Every action takes `DryRun`; parameters that
nobody knows are ignored.

An action of EC2 that is not in this table answers `InvalidAction` (400), "… is not valid for this
web service.". The id of another project's resource does not exist. A body may hold 64 KB, user
data 16 KB.

Every filter that EC2 documents for an action is known; one about what cannot exist here, such as
public addresses, fits nothing. Values may hold `*` and `?`, a backslash takes their meaning. One of
a filter's values must fit, and all filters; there may be 200 values. Another name answers
`InvalidParameterValue`, as does a `MaxResults` that is too small. `NextToken` is there exactly when
more is to come."""
_VERIFY_TEXT = """\
Errors make `anynode verify` end with status 3; warnings alone do not. The codes are stable and can
be ignored one by one (`--ignore`). I1 to I6 and I9 are the invariants of the design; N1 is about
the node's process, N2 about its networks and firewall, N3 about the machine, N5 about the store
and the broker of a cluster, and N4 stands for what observer plugins have to say, under codes of
their own.

`--fix` repairs what has no owner any more and what was counted wrongly. It looks at each finding
anew before it changes anything, never touches what has a live record or is not Anynode's, and sets
disks aside (`attic` in the state folder) instead of deleting them."""

_FIELD = re.compile(r"^:(param|returns|raises)\s*(\w*):\s*", re.MULTILINE)


def hooks_page() -> str:
    """Return the page of all hooks, and of the values that they take and answer."""
    lines = ["# Hooks", "", _WRITTEN, "", *_text(hookspecs), ""]
    lines += [f"API versions of this release: {sorted(hookspecs.API_VERSIONS)}.", ""]
    for group, spec in hookspecs.GROUPS.items():
        lines += [f"## {group.removeprefix('appliance.')}", "", *_text(spec), ""]
        for name in hook_names(group):
            lines += [*_hook(name, vars(spec)[name]), ""]
    lines += ["## Values", "", *_text(model), ""]
    for value in _values():
        lines += [f"### {value.__name__}", "", *_text(value), "", *_members(value), ""]
    return "\n".join(lines).rstrip() + "\n"


def errors_page() -> str:
    """Return the page of all errors with their stable codes."""
    lines = ["# Errors", "", _WRITTEN, "", *_text(errors), ""]
    lines += ["| code | HTTP status | class | meaning |", "|---|---|---|---|"]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.AnynodeError):
            meaning = _text(kind)[0]
            lines.append(f"| `{kind.code}` | {kind.http_status} | `{kind.__name__}` | {meaning} |")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the page of all settings of ``anynode.toml``; plugins document their own."""
    lines = ["# Settings", "", _WRITTEN, "", "| setting | type | default | meaning |"]
    lines.append("|---|---|---|---|")
    for setting in settings_of(Config):
        default = repr(setting.default)
        lines.append(f"| `{setting.name}` | {setting.type} | `{default}` | {setting.help} |")
    lines += ["", "Settings of a plugin are in `[plugins.<group>.<name>]`; its README lists them."]
    return "\n".join(lines) + "\n"


def ec2_actions_page() -> str:
    """Return the page of the EC2 actions that are served: who may call them, what they do."""
    from appliance.api.ec2.action_table import ACTIONS
    from appliance.api.policy import NEEDED

    lines = ["# EC2 actions", "", _WRITTEN, "", *_EC2_TEXT.splitlines(), ""]
    lines += ["| action | access level | what it does |", "|---|---|---|"]
    for name, action in sorted(ACTIONS.items()):
        lines.append(f"| `{name}` | {NEEDED[name]} | {_text(action.function)[0]} |")
    lines.append(f"| `GetCallerIdentity` (STS) | {NEEDED['GetCallerIdentity']} | Say who calls. |")
    for name, action in sorted(ACTIONS.items()):
        details = list(_ec2_details(action))
        if details:
            lines += ["", f"## {name}", "", *details]
    return "\n".join(lines) + "\n"


def _ec2_details(action: ec2_action.Action) -> Iterator[str]:
    """Yield what an action takes and what it refuses."""
    if action.filters:
        yield f"- Filters: {_listed(sorted(action.filters))}."
    page = action.page
    if page is not None:
        size = "all rows" if page.size is None else f"{page.size} rows"
        yield f"- Pages: `MaxResults` from {page.smallest} to {page.largest}, else {size}."
        for member in page.excludes:
            yield f"- `MaxResults` together with `{member}`: `InvalidParameterCombination`."
    if action.ignores:
        yield f"- Taken without effect: {_listed(action.ignores)}."
    if action.refuses:
        if action.filters or page or action.ignores:
            yield ""
        yield from ("| not supported | except | answer |", "|---|---|---|")
    for refusal in action.refuses:
        harmless = ", ".join(f"`{_said(value)}`" for value in refusal.unless)
        yield f"| `{refusal.parameter}` | {harmless} | `{refusal.code}`: {refusal.text} |"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def verify_page() -> str:
    """Return the page of all that ``anynode verify`` can find, and what helps."""
    from appliance import verify

    lines = ["# What verify finds", "", _WRITTEN, "", *_text(verify), ""]
    lines += [*_VERIFY_TEXT.splitlines(), ""]
    for code in verify.CODES.values():
        fix = f"{code.fix[0].upper()}{code.fix[1:]}." if code.fix else "Nothing."
        lines += [f"## {code.code}", "", f"{code.level.capitalize()}. {code.meaning}", ""]
        lines += [f"- `--fix`: {fix}", f"- You: {code.operator}", ""]
    return "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "ec2-actions.md": ec2_actions_page,
    "hooks.md": hooks_page,
    "errors.md": errors_page,
    "settings.md": settings_page,
    "verify.md": verify_page,
    "cli.md": cli_page,
}
"""Every written page by its name under ``docs/reference``."""


def _text(documented: object) -> list[str]:
    """Return a docstring as Markdown."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", inspect.getdoc(documented) or "")
    text = text.replace("``", "`")
    fields = list(_FIELD.finditer(text))
    if not fields:
        return text.splitlines()
    lines = [*text[: fields[0].start()].rstrip().splitlines(), ""]
    ends = [field.start() for field in fields[1:]] + [len(text)]
    for field, end in zip(fields, ends, strict=True):
        kind, name = field.groups()
        label = {"returns": "returns", "raises": f"raises `{name}`"}.get(kind, f"`{name}`")
        lines.append(f"- {label}: {' '.join(text[field.end() : end].split())}")
    return lines


def _hook(name: str, hook: Any) -> Iterator[str]:
    signature = inspect.signature(hook)
    arguments = ", ".join(
        f"{one.name}: {one.annotation}"
        for one in signature.parameters.values()
        if one.name != "self"
    )
    yield from (f"### {name}", "", "```python")
    yield f"{name}({arguments}) -> {signature.return_annotation}"
    yield from ("```", "", *_text(hook))


def _values() -> list[type]:
    """Return the values that hooks name, and the values in those, in the order of the model."""
    words: set[str] = set()
    for group, spec in hookspecs.GROUPS.items():
        for name in hook_names(group):
            words.update(_words(vars(spec)[name].__annotations__.values()))
    known = {
        name: kind
        for name, kind in vars(model).items()
        if isinstance(kind, type) and kind.__module__ == model.__name__
    }
    while (
        new := {
            word
            for name in words & known.keys()
            for word in _words(known[name].__annotations__.values())
        }
        - words
    ):
        words |= new
    return [kind for name, kind in known.items() if name in words and name != "Value"]


def _words(annotations: Any) -> set[str]:
    return {word for annotation in annotations for word in re.findall(r"\w+", str(annotation))}


def _members(value: type) -> Iterator[str]:
    if not issubclass(value, msgspec.Struct):
        yield from (f"- `{member.value}`" for member in value)  # type: ignore[attr-defined]
        return
    yield from ("| field | type | default |", "|---|---|---|")
    hints = get_type_hints(value)
    for field in msgspec.structs.fields(value):
        shown = value.__annotations__.get(field.name, hints[field.name])
        default = "" if field.required else f"`{_default(field)!r}`"
        yield f"| `{field.name}` | `{shown}` | {default} |".replace(" | None", " \\| None")


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def main() -> None:
    """Write all pages into the folder that the command line names."""
    folder = Path(sys.argv[1])
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
