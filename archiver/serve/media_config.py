"""https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv1mediaconfig"""

from __future__ import annotations

from aiohttp import web

from archiver.serve.answers import reply


async def get(_request: web.Request) -> web.Response:
    """What may be uploaded here: nothing."""
    return reply({"m.upload.size": 0})
