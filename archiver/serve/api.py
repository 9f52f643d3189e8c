"""What is known of a media, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from archiver.catalogue import media
from archiver.catalogue.knowledge import words
from archiver.db.pool import Pool
from archiver.model import Scope
from archiver.serve.answers import redaction, reply
from archiver.serve.asking import asked_for, redacted, unknown
from archiver.serve.auth import SCOPE
from archiver.serve.database import connection

if TYPE_CHECKING:
    from archiver.db.pool import Row

REFERENCES = 100

_REDACTION = ("redacted_by", "redacted_at", "redactor", "redaction_reason")
_BLOB = (
    "sha256", "size", "mimetype", "width", "height", "duration_ms", "place", "processing",
    "processing_reason",
)  # fmt: skip

_SCAN = ("scan", "scanned_at", "scan_reason")


class Api:
    """Answers with what the catalogue knows.

    `hides_redacted`: what was redacted, and the words that came with it, is for admins alone.
    """

    def __init__(self, pool: Pool, *, hides_redacted: bool = False) -> None:
        self._pool = pool
        self._hides_redacted = hides_redacted

    async def media(self, request: web.Request) -> web.Response:
        """State, blob, and the newest REFERENCES of a media."""
        mxc = asked_for(request)
        hides = self._hides_redacted and request[SCOPE] is not Scope.ADMIN
        async with connection(self._pool) as conn:
            row = await media.describe(conn, mxc, unredacted=hides)
            if row is None:
                raise unknown(mxc)
            if hides and row["redacted"]:
                raise redacted(mxc)
            references = await media.references(conn, mxc, REFERENCES, unredacted=hides)
        return reply(
            {
                "mxc": str(mxc),
                **{key: value for key, value in row.items() if key not in (*_BLOB, *_SCAN)},
                "blob": _blob(row) if row["sha256"] else None,
                "references": [_reference(reference) for reference in references],
            }
        )


def _blob(row: Row) -> dict[str, Any]:
    outcome, at, reason = (row[key] for key in _SCAN)
    scan = {"outcome": outcome, "at": at, "reason": reason} if outcome else None
    return {**{key: row[key] for key in _BLOB}, "scan": scan}


def _reference(row: Row) -> dict[str, Any]:
    encryption = row["encryption"] and orjson.loads(row["encryption"])
    return {
        **{key: value for key, value in row.items() if key not in _REDACTION},
        "sender_name": words(row["sender_name"]) or row["sender"],
        "room_name": words(row["room_name"]),
        "encrypted": encryption is not None,
        "encryption": encryption,
        "redacted": redaction(row),
    }
