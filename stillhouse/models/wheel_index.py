"""Where a wheel can be had, by the package index that pip is set up with on this machine.

In: a project and a wheel's file name. Out: its location, and a client that reaches it. pip's own
settings hold (files, PIP_* variables: index-url, extra-index-url, find-links, no-index, cert,
proxy, trusted-host, timeout); the index is read by the simple API (PEP 503 and 691), from the
network or from a folder. Nothing is installed, and nothing of the wheel is run.
"""

from __future__ import annotations

import ast
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from stillhouse.text import bare_url

if TYPE_CHECKING:
    import httpx

__all__ = ["Found", "PipSettings", "find_wheel", "open_client", "pip_download", "pip_settings"]

_PYPI = "https://pypi.org/simple"
_ACCEPT = (  # PEP 691, 'Version + Format Selection'
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.01"
)
_MANY = ("extra-index-url", "find-links", "trusted-host")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipSettings:
    """What pip would go by when it downloads."""

    indexes: tuple[str, ...] = (_PYPI,)
    """URLs of package indexes, the main one first."""
    find_links: tuple[str, ...] = ()
    """Folders or pages that list files."""
    cert: str | None = None
    """File of certificate authorities."""
    proxy: str | None = None
    """Proxy for all requests."""
    trusted: frozenset[str] = frozenset()
    """Hosts whose certificate is not checked."""
    timeout_seconds: float = 30.0
    """Of a connection or a read."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search for a wheel came to."""

    location: str | None
    """URL, or path of a local file."""
    unread: tuple[str, ...]
    """Places that could not be read, each with the reason."""
    asked: tuple[str, ...]
    """Places that were read."""


def pip_settings() -> PipSettings:
    """The settings of this interpreter's pip; where it has none, its environment variables."""
    merged: dict[str, str] = {}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # pip's order, later wins: [global], the command's own section, the environment
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in listed.stdout.splitlines() if listed.returncode == 0 else ():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections:
            sections[section][name] = str(ast.literal_eval(value))
    if listed.returncode != 0:
        prefix = "PIP_"
        sections[":env:"] = {
            name.removeprefix(prefix).lower().replace("_", "-"): value
            for name, value in os.environ.items()
            if name.startswith(prefix)
        }
    for section in sections.values():
        merged |= section
    many = {name: tuple(merged.get(name, "").split()) for name in _MANY}
    without = merged.get("no-index", "").lower() in {"1", "true", "yes", "on"}
    main = merged.get("index-url") or _PYPI
    return PipSettings(
        indexes=() if without else (main, *many["extra-index-url"]),
        find_links=many["find-links"],
        cert=merged.get("cert") or None,
        proxy=merged.get("proxy") or None,
        trusted=frozenset(host.partition(":")[0] for host in many["trusted-host"]),
        timeout_seconds=float(merged.get("timeout") or merged.get("default-timeout") or 30),
    )


def open_client(settings: PipSettings, url: str) -> httpx.Client:
    """A client that reaches `url` as pip would; close it."""
    import httpx

    verify: ssl.SSLContext | bool = True
    if urlsplit(url).hostname in settings.trusted:
        verify = False
    elif settings.cert:
        verify = ssl.create_default_context(
            cafile=settings.cert if Path(settings.cert).is_file() else None,
            capath=settings.cert if Path(settings.cert).is_dir() else None,
        )
    return httpx.Client(
        verify=verify, proxy=settings.proxy, follow_redirects=True,
        timeout=settings.timeout_seconds,
    )  # fmt: skip


def find_wheel(settings: PipSettings, project: str, filename: str) -> Found:
    """The first place that has the file, in pip's order: find-links, then the indexes."""
    unread: list[str] = []
    asked: list[str] = []
    name = re.sub(r"[-_.]+", "-", project).lower()  # PEP 503, 'Normalized Names'
    pages = [*settings.find_links, *(f"{index.rstrip('/')}/{name}/" for index in settings.indexes)]
    for page in pages:
        try:
            for location in _links(settings, page):
                if unquote(urlsplit(location).path).rpartition("/")[2] == filename:
                    return Found(location, tuple(unread), (*asked, page))
        except _Unread as problem:
            unread.append(f"{bare_url(page)}: {problem}")
        else:
            asked.append(page)
    return Found(None, tuple(unread), tuple(asked))


class _Unread(Exception):
    """A place could not be read."""


def _links(settings: PipSettings, page: str) -> Iterator[str]:
    """Locations a page or folder lists. A folder that is not there lists nothing, as in pip."""
    scheme = urlsplit(page).scheme
    if scheme in {"http", "https"}:
        yield from _page(settings, page)
        return
    path = Path(url2pathname(urlsplit(page).path)) if scheme == "file" else Path(page).expanduser()
    if path.is_dir() and (path / "index.html").is_file():
        path = path / "index.html"
    if path.is_dir():
        yield from (str(entry) for entry in sorted(path.iterdir()))
    elif path.is_file():
        base = path.resolve().as_uri()
        for link in _hrefs(path.read_text(encoding="utf-8", errors="replace")):
            target = urlsplit(urljoin(base, link))
            local = target.scheme == "file"
            yield url2pathname(target.path) if local else target._replace(fragment="").geturl()


def _page(settings: PipSettings, page: str) -> list[str]:
    """Locations on a page of the network; none where there is no such page."""
    import httpx

    try:
        with open_client(settings, page) as client:
            response = client.get(page, headers={"Accept": _ACCEPT})
            if response.status_code == 404:
                return []
            response.raise_for_status()
            if "json" in response.headers.get("Content-Type", ""):
                links = [file["url"] for file in json.loads(response.content)["files"]]
            else:
                links = _hrefs(response.text)
    except (httpx.HTTPError, ssl.SSLError, OSError, ValueError, KeyError, TypeError) as problem:
        raise _Unread(f"{type(problem).__name__}: {problem}") from problem
    return [
        urlsplit(urljoin(str(response.url), link))._replace(fragment="").geturl() for link in links
    ]


class _Anchors(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _hrefs(page: str) -> list[str]:
    anchors = _Anchors()
    anchors.feed(page)
    return anchors.found


def pip_download(requirement: str, folder: Path) -> str | None:
    """None when `pip download` put the wheel into `folder`, else its last words."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
            "--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder), requirement,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.strip().splitlines()[-2:]) or f"exit code {done.returncode}"
