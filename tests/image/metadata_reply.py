"""Answer one HTTP request on standard input as the EC2 metadata service would.

QEMU starts this once for each connection of the instance. It gives nothing without a session token.
"""

import sys
from pathlib import Path

TOKEN = "the-session-token"


def read_request() -> tuple[str, str, dict[str, str]]:
    """Return method, path and headers of the request."""
    method, path, _ = sys.stdin.readline().split()
    headers = {}
    while line := sys.stdin.readline().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return method, path, headers


def answer(items: Path) -> tuple[str, str]:
    """Return status and body; the items are files named as in the service."""
    method, path, headers = read_request()
    if (method, path) == ("PUT", "/latest/api/token"):
        if "x-aws-ec2-metadata-token-ttl-seconds" not in headers:
            return "400 Bad Request", ""
        return "200 OK", TOKEN
    if headers.get("x-aws-ec2-metadata-token") != TOKEN:
        return "401 Unauthorized", ""
    item = items / path.removeprefix("/latest/")
    if not item.is_file():
        return "404 Not Found", ""
    return "200 OK", item.read_text()


if __name__ == "__main__":
    status, body = answer(Path(sys.argv[1]))
    sys.stdout.write(
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    sys.stdout.write(body)
