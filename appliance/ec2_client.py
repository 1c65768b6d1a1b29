"""A client of the node's own EC2 API, for the command line and the demo."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance.config import Config
from appliance.errors import AnynodeError, ConfigError, Unavailable

CONNECT_S = 5
READ_S = 60
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_NEEDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, kw_only=True)
class Ec2Credentials:
    """Where the API is, and the access key that signs calls."""

    endpoint: str
    region: str
    access_key_id: str
    secret: str = field(repr=False)

    def env_lines(self, more: Mapping[str, str] | None = None) -> str:
        """Return an env file: lines for a shell that every AWS client understands."""
        values = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            # The SDK for JavaScript and others know only this one, and for most it goes first.
            "AWS_REGION": self.region,
            **(more or {}),
        }
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def endpoint_of(config: Config) -> str:
    """Return the URL of the node's API as a program on the node reaches it."""
    address = _EVERYWHERE.get(config.api.address, config.api.address)
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{config.api.port}"


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of an env file; none where there is no file.

    :raises ConfigError: this user may not read it, or a quote in it has no end.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(
            f"Could not read {path}: {error.strerror}.",
            hint="Run the command as its owner or root.",
        ) from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError(
                f"Line {number} of {path} is no line for a shell: {error}."
            ) from error
        if len(words) == 2 and words[0] == "export":
            name, _, value = words[1].partition("=")
            found[name] = value
    return found


def find_credentials(config: Config, env_path: Path) -> Ec2Credentials:
    """Return the credentials of the environment, else those of the env file.

    :raises ConfigError: there are none.
    """
    values: Mapping[str, str] = os.environ
    if not all(values.get(name) for name in _NEEDED):
        values = read_env_file(env_path)
    if not all(values.get(name) for name in _NEEDED):
        raise ConfigError(
            f"There is no access key: neither in the environment nor in {env_path}.",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            "`anynode key create USER PROJECT --env` prints them.",
        )
    return Ec2Credentials(
        endpoint=values.get("AWS_ENDPOINT_URL") or endpoint_of(config),
        region=values.get("AWS_DEFAULT_REGION") or config.node.region,
        access_key_id=values["AWS_ACCESS_KEY_ID"],
        secret=values["AWS_SECRET_ACCESS_KEY"],
    )


class Ec2Refused(AnynodeError):
    """The API answered with an error; ``exact_code`` is EC2's."""

    code = "Refused"
    http_status = 400


class Ec2Client:
    """Calls of the EC2 API, as any client makes them."""

    def __init__(self, credentials: Ec2Credentials) -> None:
        self.credentials = credentials

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config as ClientConfig
        from botocore.session import Session

        # What a user has set for Amazon's cloud is not for this one: profile, files, proxy.
        session = Session(
            session_vars={
                "profile": (None, None, None, None),
                "config_file": (None, None, os.devnull, None),
                "credentials_file": (None, None, os.devnull, None),
            }
        )
        return session.create_client(
            "ec2",
            region_name=self.credentials.region,
            endpoint_url=self.credentials.endpoint,
            aws_access_key_id=self.credentials.access_key_id,
            aws_secret_access_key=self.credentials.secret,
            config=ClientConfig(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"mode": "standard", "total_max_attempts": 3},
                proxies={},
            ),
        )

    def call(self, action: str, **parameters: Any) -> dict[str, Any]:
        """Call an action by its EC2 name and return its answer.

        :raises Ec2Refused: the API refused it.
        :raises Unavailable: the API does not answer.
        """
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = getattr(self._client, xform_name(action))(**parameters)
        except ClientError as error:
            refusal = error.response.get("Error", {})
            raise Ec2Refused(
                f"{action} was refused: {refusal.get('Message') or 'no reason was given'}",
                code=refusal.get("Code", ""),
            ) from error
        except BotoCoreError as error:
            raise Unavailable(
                f"{action} got no answer from {self.credentials.endpoint}: {error}",
                hint="`anynode status` says whether the node runs.",
            ) from error
        return answer

    def instances(self, **parameters: Any) -> list[dict[str, Any]]:
        """Return instances as DescribeInstances describes them."""
        answer = self.call("DescribeInstances", **parameters)
        return [one for group in answer["Reservations"] for one in group["Instances"]]

    def console(self, instance_id: str) -> str:
        """Return the end of what an instance printed on its serial port."""
        import base64

        text = self.call("GetConsoleOutput", InstanceId=instance_id).get("Output") or ""
        try:
            return base64.b64decode(text, validate=True).decode("utf-8", "replace")
        except ValueError:
            return str(text)
