"""Fetch pip's wheel, which runs without being installed, for a Python that has neither pip nor ensurepip.

Run as ``python pip_wheel.py <folder>``; prints the wheel's path. ``PIP_INDEX_URL`` names the index, which
is read in its HTML form (PEP 503): without pip there is nothing else that knows one.
"""
# ruff: noqa: INP001, S310, T201 - a script, before anything is installed

import hashlib
import html
import os
import re
import sys
import urllib.parse
import urllib.request
from pathlib import Path

_LINK = re.compile(r"""<a\s[^>]*href=["']([^"']+)["']([^>]*)>\s*(pip-([0-9.]+)-py3-none-any\.whl)\s*</a>""")


def fetch(folder: Path) -> Path:
    """Put the newest wheel of pip into ``folder``, its hash checked against the index."""
    named = os.environ.get("PIP_INDEX_URL")
    if not named:
        raise SystemExit("this Python has no pip either, and PIP_INDEX_URL names no index to fetch it from")
    index = named.rstrip("/") + "/pip/"
    with urllib.request.urlopen(index, timeout=60) as answer:
        page = answer.read().decode()
    links = [link for link in _LINK.findall(page) if "data-yanked" not in link[1]]
    if not links:
        raise SystemExit(f"error: {index} lists no wheel of pip")
    href, _, name, _ = max(links, key=lambda link: [int(part) for part in link[3].split(".")])
    address, _, digest = urllib.parse.urljoin(index, html.unescape(href)).partition("#sha256=")
    with urllib.request.urlopen(address, timeout=60) as answer:
        content = answer.read()
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit("error: the wheel of pip has another hash than its index says; try again")
    wheel = folder / name
    wheel.write_bytes(content)
    return wheel


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
