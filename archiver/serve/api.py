"""What is known of a media, and of the whole archive, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from archiver.catalogue import media
from archiver.catalogue.stats import statistics
from archiver.db.pool import Pool
from archiver.serve.answers import reply
from archiver.serve.content import asked_for, unknown
from archiver.serve.database import connection

if TYPE_CHECKING:
    from archiver.db.pool import Row

REFERENCES = 100

_BLOB = ("sha256", "size", "mimetype", "width", "height", "duration_ms", "place")


class Api:
    """Answers with what the catalogue knows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def media(self, request: web.Request) -> web.Response:
        """State, blob, and the newest REFERENCES of a media."""
        mxc = asked_for(request)
        async with connection(self._pool) as conn:
            row = await media.describe(conn, mxc)
            if row is None:
                raise unknown(mxc)
            references = await media.references(conn, mxc, REFERENCES)
        return reply(
            {
                "mxc": str(mxc),
                **{key: value for key, value in row.items() if key not in _BLOB},
                "blob": {key: row[key] for key in _BLOB} if row["sha256"] else None,
                "references": [_reference(reference) for reference in references],
            }
        )

    async def stats(self, _request: web.Request) -> web.Response:
        """The archive in figures."""
        async with connection(self._pool) as conn:
            return reply(await statistics(conn))


def _reference(row: Row) -> dict[str, Any]:
    encryption = row["encryption"] and orjson.loads(row["encryption"])
    return {**row, "encrypted": encryption is not None, "encryption": encryption}
