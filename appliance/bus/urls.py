"""URLs of brokers with and without logins. All pure."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit


def with_login(urls: str, name: str, password: str) -> str:
    """Return a broker's URLs, commas between, with a login in place of theirs."""
    login = f"{quote(name, safe='')}:{quote(password, safe='')}@"
    return ",".join(_with_user(url, login) for url in urls.split(","))


def without_login(urls: str) -> str:
    """Return a broker's URLs, commas between, without their logins."""
    return ",".join(_with_user(url, "") for url in urls.split(","))


def split(urls: str) -> list[str]:
    """Return URLs that have commas between."""
    return [url.strip() for url in urls.split(",") if url.strip()]


def _with_user(url: str, login: str) -> str:
    parts = urlsplit(url.strip())
    return urlunsplit(parts._replace(netloc=f"{login}{parts.netloc.rpartition('@')[2]}"))
