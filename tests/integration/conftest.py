"""An archive in this very process, and somebody who reads it over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.serving import Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool


@pytest.fixture
async def archive(pool: Pool, tmp_path: Path) -> Archive:
    """An archive with nothing in it."""
    archive = Archive(pool, tmp_path)
    await archive.store.open()
    return archive


@pytest.fixture
async def reader(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> AsyncIterator[Reader]:
    """Somebody who may read it."""
    secret = await archive.token()
    async with serving(archive, database_url) as server:
        yield Reader(http, server, secret)
