"""Where a proxy has the admin server, and which proxies are believed."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator


def _path(value: str) -> str:
    """Without a slash at its end; that of the top is empty."""
    stripped = value.rstrip("/")
    if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[\w.~-]+)*", stripped, re.ASCII):
        raise ValueError("it is no path of letters, digits and . _ ~ - that begins with '/', e.g. /outbox")
    return stripped


def _network(value: str) -> str:
    """Names and '*' are none: whom they mean can change."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value!r} is neither an address nor a network; e.g. 127.0.0.1 or 10.0.0.0/8") from None
    return value


RootPath = Annotated[str, AfterValidator(_path)]
"""A path below which there is something else."""

Proxy = Annotated[str, AfterValidator(_network)]
"""An address or a network."""
