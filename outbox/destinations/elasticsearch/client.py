"""Elasticsearch's official client as one of a cluster's. The 8.x client speaks to servers of 8.x and 9.x."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from elastic_transport import ApiResponse, ConnectionTimeout, TransportError
from elastic_transport import ConnectionError as NoConnection
from elasticsearch import ApiError, Elasticsearch, SerializationError
from elasticsearch.serializer import JsonSerializer, NdjsonSerializer
from urllib3.exceptions import NewConnectionError

from outbox.destinations.cluster.failures import TIMEOUT
from outbox.destinations.cluster.wire import Answer, Refused, Unanswered, read_json

OTHER_PRODUCT: Final = "this server is not Elasticsearch; if it is OpenSearch, set OUTBOX_DESTINATION=opensearch"
_SAID_BY_OPENSEARCH: Final = frozenset({404, 406})
"""What OpenSearch answers beside 2xx: that something is missing, or that it does not know the content type."""


class Prepared(NdjsonSerializer):
    """For bodies of `_bulk`, which are bytes already: the client's own copies each of them twice."""

    def dumps(self, data: bytes) -> bytes:
        return data


class Answers(JsonSerializer):
    """Not orjson's, which the client may take for its default: integers of more than 64 bits stay exact."""

    def loads(self, data: bytes) -> Any:
        try:
            return read_json(data)
        except ValueError as error:
            raise SerializationError(f"Unable to deserialize as JSON: {data[:200]!r}", errors=(error,)) from error


class ElasticsearchClient:
    """See `outbox.destinations.cluster.wire.Client`."""

    def __init__(self, urls: Sequence[str], *, request_timeout: float, connections: int, **options: Any) -> None:
        self._official = partial(
            Elasticsearch,
            list(urls),
            request_timeout=request_timeout,
            connections_per_node=connections,
            **options,
        )
        self._client = self._official(
            max_retries=0,
            retry_on_timeout=False,
            retry_on_status=(),
            serializers={Prepared.mimetype: Prepared(), Answers.mimetype: Answers()},
        )
        # The transport logs every failed request with a traceback; the breaker says it once.
        logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)

    def ask(self, method: str, target: str, body: bytes | None, content_type: str) -> Answer:
        headers = {"accept": "application/json"} | ({} if body is None else {"content-type": content_type})
        try:
            answer: ApiResponse[Any] | ApiError = self._client.perform_request(
                method, target, headers=headers, body=body
            )
        except ApiError as error:  # with an error status; or of another product, which the client sees once
            answer = error
        except ConnectionTimeout as error:
            raise Unanswered(TIMEOUT, error.message) from error
        except NoConnection as error:
            nothing_sent = isinstance(error.__cause__, NewConnectionError)
            raise Unanswered(type(error).__name__, error.message, "none" if nothing_sent else "lost") from error
        except TransportError as error:
            raise Unanswered(type(error).__name__, error.message) from error
        status = answer.meta.status
        by_another = status < 300 or (status in _SAID_BY_OPENSEARCH and isinstance(answer.body, dict))
        if by_another and answer.meta.headers.get("x-elastic-product") != "Elasticsearch":
            raise Refused(status, None, OTHER_PRODUCT)
        return Answer(status, answer.body)

    def official(self) -> Elasticsearch:
        return self._official()

    def close(self) -> None:
        self._client.close()
