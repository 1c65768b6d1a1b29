"""``anynode verify``: whether what is, is what should be."""

from __future__ import annotations

import click

from appliance.cli.access import Access, pass_access
from appliance.cli.output import json_option

FOUND_ERRORS = 3
"""Exit status when errors were found."""


@click.command("verify")
@json_option
@pass_access
def verify(access: Access, as_json: bool) -> None:
    """x"""
