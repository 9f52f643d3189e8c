"""Answers that are not media: JSON, and errors in Matrix's form."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from archiver.serve.headers import PRIVATE


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
