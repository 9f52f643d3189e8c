"""An archive in this very process, and somebody who reads it over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from archiver.db.pool import open_pool
from tests.support.fetching import parts
from tests.support.homeserver import Homeserver
from tests.support.postgres import PostgresServer
from tests.support.serving import Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool
    from archiver.fetch.archive import Parts


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


@pytest.fixture
async def homeserver() -> AsyncIterator[Homeserver]:
    """A homeserver that serves what it is given."""
    async with Homeserver() as server:
        yield server


@pytest.fixture
async def ours(pool: Pool, tmp_path: Path, homeserver: Homeserver) -> AsyncIterator[Parts]:
    """An archive, its objects in a folder."""
    async with parts(pool, tmp_path, homeserver.url) as built:
        yield built


@pytest.fixture
async def other_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """Another database with nothing in it."""
    url = await postgres_server.create_migrated()
    yield url
    await postgres_server.drop(url)


@pytest.fixture
async def other(other_url: str, tmp_path: Path, homeserver: Homeserver) -> AsyncIterator[Parts]:
    """Another archive."""
    folder = tmp_path / "other"
    async with open_pool(other_url, 5) as pool, parts(pool, folder, homeserver.url) as built:
        yield built
