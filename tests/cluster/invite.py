"""``python -m tests.cluster.invite CONFIG NAME…``: make a join token for each name.

They are made by ``anynode token create``, all in one process: an interpreter for each would take
longer than the joining. Prints a list of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from click.testing import CliRunner

from appliance.cli import main as anynode


def main(config: str, names: Sequence[str]) -> None:
    """Make the tokens; :raises RuntimeError: one was refused."""
    runner = CliRunner()
    made = []
    for name in names:
        words = ["--config", config, "token", "create", "--node", name, "--json"]
        said = runner.invoke(anynode, words)
        if said.exit_code:
            raise RuntimeError(said.output)
        made.append(json.loads(said.stdout)["token"])
    print(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
