"""What every request must pass before anything else looks at it, and what every answer carries.

Pure ASGI, around the application: a route that is added later cannot forget it.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from loguru import logger

from outbox import logs
from outbox.admin import roles, sessions
from outbox.admin.roles import Operator
from outbox.errors import shortened

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_PATH_BYTES: Final = 8_192
MOST_HEADER_BYTES: Final = 16_384
MOST_BODY_BYTES: Final = 65_536
PROBLEM: Final = "application/problem+json"

OPEN_PATHS: Final = frozenset({"/health/live", "/health/ready", "/login"})
"""What is answered without the token: probes, which say nothing but yes or no, and the place to give it."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

HEADERS: Final = {
    # No inline script or style, nothing from elsewhere, in no frame: what was stored as text stays text.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: HTTPStatus, detail: str, *, to_login: bool = False) -> None:
        super().__init__(detail)
        self.status, self.detail, self.to_login = status, detail, to_login


class ClientGone(Exception):
    """The client hung up before its request was complete: a part of it must not be taken for the whole."""


class Guard:
    """`operators`: who is answered, by their tokens; none: only requests to this machine's own name are.

    `root_path`: what a proxy has before all paths. It may send it or leave it out: routes see it in neither case, what
    an answer leads to has it. `secure`: browsers are told to use nothing but TLS here.

    Whoever asks is in the scope as `outbox.operator`, the path without that of the proxy as `outbox.path`.
    """

    def __init__(self, app: App, *, operators: tuple[Operator, ...], secure: bool, root_path: str = "") -> None:
        self.app, self._operators, self._secure, self._root_path = app, operators, secure, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a WebSocket: closed by the server, since nothing accepts it
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = _below(self._root_path, scope["path"])
        scope = {**scope, "path": self._root_path + path, "root_path": self._root_path, "outbox.path": path}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [self._led(*each) for each in message.get("headers", ())]
                message["headers"] = [*given, *_encoded(self._headers(path))]
            await send(message)

        try:
            scope = {**scope, "outbox.operator": self._check(scope, headers)}
            body = await _body(receive, headers)
        except Refused as refused:
            if refused.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                client = (scope.get("client") or ("?",))[0]
                logger.warning(
                    "admin: refused {method} {path} of {client}: {reason}",
                    method=logs.safe(scope["method"]),
                    path=logs.safe(path),
                    client=logs.safe(client),
                    reason=logs.safe(refused.detail),
                )
            await _answer(scope, send_with_headers, refused)
            return
        except ClientGone:
            return
        if scope["method"] == "HEAD":  # as GET; the server sends what belongs before the body and leaves that out
            scope = {**scope, "method": "GET"}
        await self.app(scope, _replayed(body, receive), send_with_headers)

    def _headers(self, path: str) -> dict[str, str]:
        kept = {"cache-control": "public, max-age=300" if path.startswith("/static/") else "no-store"}
        return HEADERS | kept | ({"strict-transport-security": "max-age=31536000"} if self._secure else {})

    def _led(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        """A header; one that leads to a page here leads there through the proxy."""
        leads = name.lower() == b"location" and value.startswith(b"/")
        return (name, self._root_path.encode() + value) if leads else (name, value)

    def _check(self, scope: Scope, headers: dict[str, str]) -> Operator | None:
        """Who asks; None where nobody has to say, and did not. Raises `Refused`."""
        path = scope["outbox.path"]
        if len(scope.get("raw_path") or path) + len(scope.get("query_string", b"")) > MOST_PATH_BYTES:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"the address has more than {MOST_PATH_BYTES:,} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have more than {MOST_HEADER_BYTES:,} bytes"
            )
        if "\0" in path:
            raise Refused(HTTPStatus.BAD_REQUEST, "the address contains a null character")
        if not self._operators:
            self._check_host(headers)
        if scope["method"] not in SAFE_METHODS:
            _check_origin(headers, scope.get("scheme", "http"))
        if not self._operators or path.startswith("/static/"):
            return None
        if path in OPEN_PATHS:
            return self._known(headers)
        operator = self._named(scope, headers)
        if scope["method"] not in SAFE_METHODS and operator.role < (needed := roles.needed(path)):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"{operator.name} may {operator.role}: this needs the role {needed} (OUTBOX_ADMIN_TOKENS)",
            )
        return operator

    def _check_host(self, headers: dict[str, str]) -> None:
        # A page of another site that has its name lead here (DNS rebinding) comes with that name.
        name = _host_name(headers.get("host", ""))
        if name is None or not is_local(name):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"host {shortened(name)} is not this machine; set OUTBOX_ADMIN_TOKEN to be reached by another name",
            )

    def _known(self, headers: dict[str, str]) -> Operator | None:
        """Who asks, by token or cookie; None: nobody who has one."""
        if _has_bearer(headers):
            given = headers["authorization"][7:].encode("latin-1").strip()  # the bytes as sent
            return roles.with_token(self._operators, given)
        return roles.with_session(self._operators, _cookie(headers))

    def _named(self, scope: Scope, headers: dict[str, str]) -> Operator:
        """Who asks. Raises `Refused`."""
        operator = self._known(headers)
        if _has_bearer(headers):
            if operator is None:
                raise Refused(
                    HTTPStatus.UNAUTHORIZED,
                    "the token is none of OUTBOX_ADMIN_TOKEN and OUTBOX_ADMIN_TOKENS",
                )
            return operator
        if operator is None:
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "give the token of OUTBOX_ADMIN_TOKEN: Authorization: Bearer …",
                to_login="text/html" in headers.get("accept", ""),
            )
        if scope["method"] not in SAFE_METHODS and not ({"origin", "sec-fetch-site"} & headers.keys()):
            raise Refused(HTTPStatus.FORBIDDEN, "a browser that does not say which page sent this is not trusted")
        return operator


def _below(root_path: str, path: str) -> str:
    """A path without that of the proxy, which has kept it there or not."""
    kept = path == root_path or path.startswith(f"{root_path}/")
    return path[len(root_path) :] or "/" if root_path and kept else path


def _has_bearer(headers: dict[str, str]) -> bool:
    return headers.get("authorization", "")[:7].lower() == "bearer "


def _check_origin(headers: dict[str, str], scheme: str) -> None:
    """Refuse what a page of another site has a browser send. Programs send neither header."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and (
        not (sent_by := _netloc(origin))
        or sent_by != headers.get("host", "").lower()
        # The other way around nothing is wrong: a proxy that nobody named has taken off the TLS.
        or (scheme == "https" and not origin.startswith("https:"))
    ):
        raise Refused(HTTPStatus.FORBIDDEN, f"sent by a page of {shortened(origin)}")
    if site not in (None, "same-origin", "none"):
        raise Refused(HTTPStatus.FORBIDDEN, f"sent by a page of another site (Sec-Fetch-Site: {shortened(site)})")


def is_local(name: str) -> bool:
    """Whether a host is this machine for any client: a name that could lead elsewhere is not."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _cookie(headers: dict[str, str]) -> str:
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == sessions.COOKIE:
            return value
    return ""


# -- ASGI --------------------------------------------------------------------------------------------------------------


async def _body(receive: Receive, headers: dict[str, str]) -> bytes:
    """The whole body, which is small. Raises `ClientGone` if it ends before it is whole."""
    too_large = Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {MOST_BODY_BYTES:,} bytes")
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > MOST_BODY_BYTES):
        raise too_large
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY_BYTES:
            raise too_large
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(scope: Scope, send: Send, refused: Refused) -> None:
    status, headers = int(refused.status), {"content-type": PROBLEM}
    if refused.to_login:
        back = "/"  # a form is not sent again
        if scope["method"] == "GET":
            back = scope["outbox.path"] + (
                "?" + scope["query_string"].decode("latin-1") if scope["query_string"] else ""
            )
        status, headers = 303, {"location": f"/login?next={quote(back)}"}
    elif refused.status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    body = b"" if refused.to_login else json.dumps(problem(refused.status, refused.detail)).encode()
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def problem(status: int, detail: str) -> dict[str, Any]:
    """An error as RFC 9457 has it."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
