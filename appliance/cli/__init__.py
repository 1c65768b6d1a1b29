"""The command line: ``anynode``. One module per noun; what is heavy is imported where it is used.

Exit status: 0 done, 1 an error that the message explains, 2 the command line is wrong,
3 ``verify`` found errors, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from appliance.cli import (
    address,
    audit,
    config,
    console,
    demo,
    evacuate,
    explain,
    firewall,
    image,
    init,
    instances,
    join,
    key,
    launch,
    messages,
    network,
    node,
    plugins,
    project,
    role,
    run,
    sandbox,
    status,
    token,
    trace,
    user,
    verify,
)
from appliance.cli.access import Access
from appliance.cli.output import say_error

INTERRUPTED = 130


class Root(click.Group):
    """The command ``anynode``: turns every error into one sentence and an exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and end the process."""
        given = list(sys.argv[1:] if args is None else args)
        sys.exit(self._run(given, prog_name or "anynode", **extra))

    def _run(self, args: list[str], prog_name: str, **extra: Any) -> int:
        is_debugging = "--debug" in args
        try:
            answer = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.exceptions.Exit as end:
            return int(end.exit_code)
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted.", err=True)
            return INTERRUPTED
        except Exception as error:
            if is_debugging:
                raise
            return _explain(error)
        return answer if isinstance(answer, int) else 0


def _explain(error: Exception) -> int:
    from appliance.errors import AnynodeError, cause_chain

    if isinstance(error, AnynodeError):
        causes = [cause for cause in cause_chain(error)[1:] if cause not in error.message]
        because = f" ({'; '.join(causes)})" if causes and not error.hint else ""
        say_error(error.message + because, error.hint)
    elif isinstance(error, PermissionError):
        say_error(f"This user may not use {error.filename}.", "Run the command as root.")
    elif isinstance(error, OSError) and error.filename:
        say_error(f"Could not use {error.filename}: {error.strerror}.")
    else:
        say_error(
            f"The command failed: {type(error).__name__}: {error}",
            "This is a bug: run it again with `anynode --debug …` and report what it prints.",
        )
    return 1


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 an error that the message explains, 2 the command line is "
    "wrong, 3 verify found errors, 130 interrupted.",
)
@click.option(
    "--config",
    "config_option",
    metavar="FILE",
    help="Configuration file, or its folder; else $ANYNODE_CONFIG, ./var, /etc/anynode.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks, and log what is done.")
@click.version_option(package_name="anynode", prog_name="anynode")
@click.pass_context
def main(context: click.Context, config_option: str | None, debug: bool) -> None:
    """Run and look after a node of a private EC2."""
    context.obj = Access(config_option=config_option, is_debugging=debug)
    if debug:
        from appliance import log

        log.to_stderr("DEBUG")


for _command in (
    run.run,
    status.status,
    token.token,
    join.join,
    node.node,
    role.role,
    network.network,
    address.address,
    user.user,
    project.project,
    key.key,
    image.image,
    init.init,
    launch.launch,
    instances.instances,
    console.console,
    trace.trace,
    explain.explain,
    evacuate.evacuate,
    audit.audit,
    firewall.firewall,
    verify.verify,
    messages.messages,
    plugins.plugins,
    config.config,
    sandbox.sandbox,
    demo.demo,
):
    main.add_command(_command)
