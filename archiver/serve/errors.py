"""The one place where errors become answers: Matrix JSON, with what the reader may know."""

from __future__ import annotations

import math
from functools import lru_cache

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter

from archiver import metrics
from archiver.errors import (
    ArchiverError,
    BlobMissing,
    RequestError,
    StoreUnavailable,
    TryLater,
    UnknownToken,
)
from archiver.serve.answers import refusal, reply
from archiver.serve.conditional import RangeNotSatisfiable
from archiver.serve.database import DatabaseUnavailable

RETRY_AFTER = {"Retry-After": "5"}  # seconds

log = structlog.get_logger(__name__)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every request gets an answer, counted by its route, that tells no secrets."""
    try:
        response = await handler(request)
    except ArchiverError as error:
        response = _of_ours(request, error)
    except web.HTTPException as error:
        response = _of_aiohttp(error)
    except Exception:  # nobody foresaw it: the log gets all, the reader a 500
        log.exception("a request failed", method=request.method, path=request.path)
        response = refusal(500, "M_UNKNOWN", "the archive failed; its log says why")
    _requests(request.match_info.route.resource, response.status).inc()
    return response


def report(request: web.Request, error: ArchiverError) -> None:
    """Tells the operator, also when it is too late to tell the reader.

    Bytes that rows promise and a store does not have are damage: counted, and never silent.
    """
    match error:
        case StoreUnavailable():
            log.warning("a store does not answer", path=request.path, reason=str(error))
        case BlobMissing():
            metrics.DAMAGED.inc()
            log.error("bytes are missing", path=request.path, reason=str(error))
        case _:
            log.error("a request could not be served", path=request.path, reason=str(error))


@lru_cache(512)
def _requests(resource: web.AbstractResource | None, status: int) -> Counter:
    return metrics.REQUESTS.labels(resource.canonical if resource else "none", status)


def _of_ours(request: web.Request, error: ArchiverError) -> web.Response:
    match error:
        case RangeNotSatisfiable():
            headers = {"Content-Range": f"bytes */{error.size}"}
            return refusal(error.status, error.errcode, str(error), headers)
        case TryLater():
            return _later(error)
        case UnknownToken(soft_logout=True):
            said = {"errcode": error.errcode, "error": str(error), "soft_logout": True}
            return reply(said, error.status)
        case RequestError():
            return refusal(error.status, error.errcode, str(error))
    report(request, error)
    match error:
        case StoreUnavailable():
            away = "database" if isinstance(error, DatabaseUnavailable) else "object store"
            sentence = f"the archive's {away} does not answer: nothing is lost, try again soon"
            return refusal(error.status, error.errcode, sentence, RETRY_AFTER)
        case BlobMissing():
            return refusal(500, error.errcode, "the archive lost the bytes of this media")
    return refusal(error.status, error.errcode, "the archive failed; its log says why")


def _later(error: TryLater) -> web.Response:
    """https://spec.matrix.org/v1.16/client-server-api/#rate-limiting"""
    said: dict[str, object] = {"errcode": error.errcode, "error": str(error)}
    said["retry_after_ms"] = math.ceil(error.retry_after * 1000)
    return reply(said, error.status, {"Retry-After": str(math.ceil(error.retry_after))})


def _of_aiohttp(error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            sentence = f"this endpoint takes {allowed} only"
            return refusal(405, "M_UNRECOGNIZED", sentence, {"Allow": allowed})
        case web.HTTPNotFound():
            return refusal(404, "M_UNRECOGNIZED", "there is no such endpoint")
    return refusal(error.status, "M_UNKNOWN", error.reason)
