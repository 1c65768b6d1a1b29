"""The reference page of the command line, written from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from appliance.cli import main

_ACCESS = (
    "A node is found by `--config`, `$ANYNODE_CONFIG`, `./var/`, `/etc/anynode`, in that order. "
    "Commands work on the node's store, as its owner (root); `launch` and `console` go "
    "through the EC2 API with the access key of the environment or of `anynode.env` beside "
    "the configuration file."
)
_ERRORS = (
    "Errors are one sentence and a hint on standard error; `--debug` shows the traceback. "
    "Colours are used on a terminal only, and never with `NO_COLOR`."
)


def cli_page() -> str:
    """Return the page of all commands with their arguments and options."""
    lines = [
        "# Command line",
        "",
        "<!-- Written by `python -m appliance.reference`; a test compares. -->",
        "",
        main.help or "",
        "",
        _ACCESS,
        "",
        "| exit status | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | an error, which the message explains; `status`: no node runs |",
        "| 2 | the command line is wrong |",
        "| 3 | `verify` found errors |",
        "| 130 | interrupted |",
        "",
        _ERRORS,
        "",
        *_options(main),
        "",
    ]
    for words, command in commands(main, "anynode"):
        text = inspect.cleandoc(command.help or "")
        lines += [f"## {words}", "", text, "", *_synopsis(words, command), ""]
        options = _options(command)
        lines += [*options, ""] if options else []
    return "\n".join(lines).rstrip() + "\n"


def commands(group: click.Group, words: str) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands of a group with the words that call them, groups before their own."""
    for name in sorted(group.commands):
        command = group.commands[name]
        yield f"{words} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{words} {name}")


def _synopsis(words: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=words)
    return ["```", " ".join([words, *command.collect_usage_pieces(context)]), "```"]


def _options(command: click.Command) -> list[str]:
    context = click.Context(command)
    records = [
        record
        for parameter in command.get_params(context)
        if "--help" not in parameter.opts
        and (record := parameter.get_help_record(context)) is not None
        and record[1]
    ]
    if not records:
        return []
    rows = [f"| `{names}` | {text} |" for names, text in records]
    return ["| option | meaning |", "|---|---|", *(_cell(row) for row in rows)]


def _cell(row: str) -> str:
    """Return a row whose choices, which click separates by bars, stay in their cell."""
    head, names, tail = row.split("`", 2)
    return f"{head}`{names.replace('|', chr(92) + '|')}`{tail}"
