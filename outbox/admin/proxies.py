"""Who asks, where a proxy asks for them: its headers count if it is one of those that were named."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from outbox.admin.guard import App, Receive, Scope, Send


def believing(app: App, proxies: Iterable[str]) -> App:
    """`app`, for which `X-Forwarded-For`, `-Proto` and `-Host` of these addresses and networks count.

    Those of anybody else are left where they are, and nothing reads them.
    """
    known = ProxyHeadersMiddleware(app, [*_networks(proxies)])  # type: ignore[arg-type]

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope.get("client") or ("",))[0] in known.trusted_hosts:
            scope = {**scope, "headers": _with_host(scope["headers"])}
        await known(scope, receive, send)  # type: ignore[arg-type]

    return asked


def _networks(proxies: Iterable[str]) -> Iterator[str]:
    """Each also as a server that listens on IPv6 sees it."""
    for each in proxies:
        network = ipaddress.ip_network(each, strict=False)
        yield str(network)
        if network.version == 4:
            yield f"::ffff:{network.network_address}/{96 + network.prefixlen}"


def _with_host(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With the name that the client used. Of several the last: the proxy itself said that, the rest it was told."""
    told = [value for name, value in headers if name == b"x-forwarded-host"]
    if not told:
        return list(headers)
    host = told[-1].rpartition(b",")[2].strip()
    return [*((name, value) for name, value in headers if name != b"host"), (b"host", host)]
