"""OpenSearch's official client as one of a cluster's."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from opensearchpy import OpenSearch, Urllib3HttpConnection
from opensearchpy.exceptions import ConnectionError as NoConnection
from opensearchpy.exceptions import ConnectionTimeout, SerializationError, SSLError, TransportError
from opensearchpy.serializer import JSONSerializer
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from outbox.destinations.cluster.failures import TIMEOUT
from outbox.destinations.cluster.wire import Answer, Refused, Unanswered, read_json

OTHER_PRODUCT: Final = "this server is Elasticsearch: set OUTBOX_DESTINATION=elasticsearch and OUTBOX_ELASTICSEARCH_URL"


_ERRORS: Final = range(300, 600)


class _Connection(Urllib3HttpConnection):
    """Looks at who answers, which the client's own does not, though Elasticsearch takes its requests."""

    def perform_request(self, *arguments: Any, **named: Any) -> Any:
        status, headers, text = super().perform_request(*arguments, **named | {"ignore": _ERRORS})
        if "x-elastic-product" in headers:
            raise Refused(status, None, OTHER_PRODUCT)
        if status >= 300:
            self._raise_error(status, text, headers.get("content-type"))
        return status, headers, text


class Answers(JSONSerializer):
    """What the outbox reads of an answer."""

    def loads(self, s: str) -> Any:
        try:
            return read_json(s)
        except ValueError as error:
            raise SerializationError(s, error) from error


class OpenSearchClient:
    """See `outbox.destinations.cluster.wire.Client`."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        basic_auth: tuple[str, str] | None,
        request_timeout: float,
        connections: int,
        **options: Any,
    ) -> None:
        if basic_auth:  # not `http_auth`, which takes no letters beyond Latin-1
            options["headers"] = {"authorization": f"Basic {b64encode(':'.join(basic_auth).encode()).decode()}"}
        self._official = partial(OpenSearch, list(urls), timeout=request_timeout, pool_maxsize=connections, **options)
        self._client = self._official(
            connection_class=_Connection,
            serializer=Answers(),
            max_retries=0,
            retry_on_timeout=False,
            retry_on_status=(),
        )
        self._timeout = request_timeout
        # The client logs every failed request with a traceback; the breaker says it once.
        logging.getLogger("opensearch").setLevel(logging.CRITICAL)

    def ask(self, method: str, target: str, body: bytes | None, content_type: str) -> Answer:
        try:
            found = self._client.transport.perform_request(
                method, target, body=body, timeout=self._timeout, headers={"content-type": content_type}
            )
        except ConnectionTimeout as error:
            raise Unanswered(TIMEOUT, error.error) from error
        except SSLError as error:
            raise Unanswered("TlsError", error.error, "lost") from error
        except NoConnection as error:
            if isinstance(error.info, NewConnectionError):
                raise Unanswered("ConnectionError", error.error, "none") from error
            if isinstance(error.info, ConnectTimeoutError):
                raise Unanswered(TIMEOUT, error.error) from error
            raise Unanswered("ConnectionError", error.error, "lost") from error
        except TransportError as error:
            return Answer(int(error.status_code), error.error if error.info is None else error.info)
        except SerializationError as error:
            raise Unanswered("SerializationError", str(error)) from error
        return Answer(200, found)  # which of the 2xx it was, the client keeps to itself

    def official(self) -> OpenSearch:
        return self._official()

    def close(self) -> None:
        self._client.close()
