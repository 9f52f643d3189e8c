"""Whoever is told that bytes are missing lets everybody know."""

from __future__ import annotations

import asyncpg
import structlog

from archiver.catalogue import custody, verification
from archiver.db.pool import Pool
from archiver.errors import ArchiverError
from archiver.model import Blob
from archiver.serve.database import connection

WHO = ("archiver", "serve")

log = structlog.get_logger(__name__)


async def missed(pool: Pool, blob: Blob) -> None:
    """Notes a blob as damaged, unless it was deleted meanwhile; raises nothing, because the reader
    is to be told what was the matter."""
    try:
        async with connection(pool) as conn, conn.transaction():
            if await verification.damaged(conn, blob.sha256):
                await custody.note(conn, *WHO, "read", blob.sha256.hex(), found="missing")
    except (ArchiverError, asyncpg.PostgresError) as error:
        log.warning("damage could not be noted", sha256=blob.sha256.hex(), reason=str(error))
