"""Answers that are not media: JSON, and errors in Matrix's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from archiver.serve.headers import PRIVATE

if TYPE_CHECKING:
    from archiver.db.pool import Row


def reply(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """JSON, which nobody keeps; times are RFC 3339."""
    return web.Response(
        status=status,
        body=orjson.dumps(data),
        content_type="application/json",
        headers={**PRIVATE, **(headers or {})},
    )


def refusal(
    status: int, errcode: str, error: str, headers: dict[str, str] | None = None
) -> web.Response:
    """An error: https://spec.matrix.org/v1.16/client-server-api/#standard-error-response"""
    return reply({"errcode": errcode, "error": error}, status, headers)


def redaction(row: Row, *, emptied: bool = False) -> dict[str, Any] | None:
    """Who redacted an event, when and why; None where nobody did. As columns: `redacted_by`,
    `redactor`, `redacted_at`, `redaction_reason`, all NULL while an `emptied` event's redaction
    has not come."""
    if row["redacted_by"] is None and not emptied:
        return None
    return {
        "event_id": row["redacted_by"],
        "by": row["redactor"],
        "at": row["redacted_at"],
        "reason": row["redaction_reason"],
    }
