"""One POST to the address that operators gave, signed. Nothing here logs: an address of this kind is a secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import unquote, urlsplit

from outbox import __version__

TIMEOUT_S: Final = 10.0


class Webhook:
    """`url`: http or https, with user and password if the receiver wants them. `secret`: signs what is sent."""

    def __init__(self, url: str, secret: str | None) -> None:
        self._parts, self._secret = urlsplit(url), secret

    @property
    def name(self) -> str:
        """Scheme, host and port: all of the address that may be shown."""
        host = self._parts.hostname or ""
        port = f":{self._parts.port}" if self._parts.port else ""
        return f"{self._parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"

    def post(self, body: bytes) -> str | None:
        """Send JSON. None if it was taken (2xx, nothing else: redirects are not followed), else why not."""
        parts = self._parts
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            connection.request(
                "POST", (parts.path or "/") + (parts.query and f"?{parts.query}"), body, self._head(body)
            )
            status = connection.getresponse().status
        except (OSError, HTTPException, UnicodeError) as error:  # the last: a host such as a..b
            return str(error) or type(error).__name__
        finally:
            connection.close()
        return None if 200 <= status < 300 else f"it answered {status}"

    def _head(self, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        head = {"Content-Type": "application/json", "User-Agent": f"outbox-relay/{__version__}"}
        head["X-Outbox-Timestamp"] = timestamp
        if self._secret is not None:
            head["X-Outbox-Signature"] = f"sha256={signature(self._secret, timestamp, body)}"
        if self._parts.username is not None:
            pair = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
            head["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return head


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 of the timestamp, a dot and the body, in hex. Whoever checks it refuses an old timestamp, too."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
