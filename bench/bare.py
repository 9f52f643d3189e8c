"""What the same libraries do when they do next to nothing: the yardstick for our own servers.

    python -m bench.bare PORT intake
    python -m bench.bare PORT serve DSN FOLDER

`intake` parses a push and answers `{}`. `serve` asks the database once for a media and answers
with its bytes, from there or from the folder of objects; it checks and counts nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import asyncpg
import orjson
import uvloop
from aiohttp import web

from archiver.store.base import key_of
from tests.support.process import LOOPBACK

CONNECTIONS = 20  # as many as the archive has with its default configuration
MEDIA = """
SELECT b.sha256, b.mimetype, d.data
FROM media AS m JOIN blob AS b ON b.sha256 = m.blob_sha256
LEFT JOIN blob_data AS d ON d.sha256 = b.sha256
WHERE m.server_name = $1 AND m.media_id = $2
"""


async def intake() -> web.Application:
    """Parses, and throws away."""

    async def push(request: web.Request) -> web.Response:
        orjson.loads(await request.read())
        return web.json_response({})

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_put("/_matrix/app/v1/transactions/{txn_id}", push)
    return app


async def serve(dsn: str, folder: str) -> web.Application:
    """One statement a request, and the bytes."""

    async def nothing(_conn: object) -> None:
        """As in the archive: asyncpg's own reset is a second statement a request."""

    pool = await asyncpg.create_pool(
        dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=nothing
    )

    async def download(request: web.Request) -> web.StreamResponse:
        async with pool.acquire() as conn:
            row = await conn.fetchrow(
                MEDIA, request.match_info["server"], request.match_info["id"]
            )
        assert row is not None
        if row["data"] is None:
            return web.FileResponse(Path(folder, key_of(row["sha256"])))
        return web.Response(body=row["data"], content_type=row["mimetype"])

    app = web.Application()
    app.router.add_get("/_matrix/client/v1/media/download/{server}/{id}", download)
    return app


def main(port: str, kind: str, *arguments: str) -> None:
    """Serves until it is ended."""
    app = serve(*arguments) if kind == "serve" else intake()
    loop = uvloop.new_event_loop()
    web.run_app(app, host=LOOPBACK, port=int(port), access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main(*sys.argv[1:])
