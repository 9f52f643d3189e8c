"""An archive to read from: media put in by hand, and the readers' door over real HTTP."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.test_utils import TestServer

from archiver.capture.batch import Batch
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import record
from archiver.capture.rows import keep
from archiver.catalogue import tokens
from archiver.db.listen import Listener
from archiver.fetch.inspect import inspect
from archiver.model import Mxc, Scope, Source
from archiver.serve.access import Access
from archiver.serve.server import Serving
from archiver.serve.through import Demand
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.spool import Spool
from archiver.variants.maker import open_maker

if TYPE_CHECKING:
    from archiver.db.pool import Pool

INLINE_LIMIT = 64 * 1024
DEADLINE_SECONDS = 20
SERVER = "remote.example"
POLICY = CapturePolicy("archive.test")
MATRIX = "/_matrix/client/v1/media/download"


async def eventually(holds: Callable[[], bool]) -> None:
    """Returns when it holds. Raises TimeoutError when it never does."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():  # noqa: ASYNC110  # nobody tells us, so we have to ask
            await asyncio.sleep(0.01)


class Archive:
    """What has been archived, without a homeserver or a worker."""

    def __init__(self, pool: Pool, folder: Path, inline_limit: int = INLINE_LIMIT) -> None:
        self.pool = pool
        self.folder = folder
        self.objects = FilesystemStore(folder / "objects")
        self.store = HybridStore(PostgresStore(pool), self.objects, inline_limit)
        self._spool = Spool(folder / "spool", inline_limit)

    async def put(
        self, data: bytes, declared_type: str | None = "image/png", upload_name: str | None = None
    ) -> Mxc:
        """A new media that is ready."""
        async with self._spool.body() as body:
            await body.write(data)
            sha256 = await body.finish()
            inline = await self.store.settle(body)
            facts = await inspect(body)
        place = self.store.place_for(len(data))
        await self.pool.execute(
            "INSERT INTO blob (sha256, size, place, mimetype, width, height, duration_ms)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            sha256, len(data), place, *facts,
        )  # fmt: skip
        if inline is not None:
            insert = "INSERT INTO blob_data VALUES ($1, $2) ON CONFLICT DO NOTHING"
            await self.pool.execute(insert, sha256, inline)
        mxc = Mxc(SERVER, secrets.token_hex(8))
        await self.pool.execute(
            "INSERT INTO media (server_name, media_id, state, blob_sha256, declared_type,"
            " upload_name, settled_at) VALUES ($1, $2, 'ready', $3, $4, $5, now())",
            *mxc, sha256, declared_type, upload_name,
        )  # fmt: skip
        return mxc

    async def put_state(self, state: str, reason: str | None) -> Mxc:
        """A new media without bytes."""
        mxc = Mxc(SERVER, secrets.token_hex(8))
        await self.pool.execute(
            "INSERT INTO media (server_name, media_id, state, reason, due_at)"
            " VALUES ($1, $2, $3, $4, now())",
            *mxc, state, reason,
        )  # fmt: skip
        return mxc

    async def refer(self, mxc: Mxc, sent_at: int = 0, **columns: Any) -> str:
        """A new event that names the media; returns its id. `columns` are the reference's."""
        event_id = f"${secrets.token_hex(8)}"
        await self.pool.execute(
            "INSERT INTO event"
            " (event_id, origin_server_ts, room_id, sender, type, content, source) VALUES"
            " ($1, $2, '!room', '@sender:remote.example', 'm.room.message', '{}', 'push')",
            event_id,
            sent_at,
        )
        await self.pool.execute(
            "INSERT INTO reference SELECT * FROM jsonb_populate_record(NULL::reference, $1)",
            json.dumps(
                {"event_id": event_id, "server_name": mxc.server_name, "media_id": mxc.media_id,
                 "role": "content", "item": 0, **columns}
            ),
        )  # fmt: skip
        return event_id

    async def record(
        self,
        *events: dict[str, Any],
        source: Source = Source.PUSH,
        policy: CapturePolicy = POLICY,
    ) -> None:
        """Takes events in, as either door does."""
        kept = keep(Batch(json.dumps({"events": events}).encode()), policy)
        async with self.pool.acquire() as conn:
            await record(conn, kept, source, policy)

    async def token(self, name: str = "reader", scope: Scope = Scope.READ) -> str:
        """A new token's secret."""
        async with self.pool.acquire() as conn:
            return await tokens.create(conn, name, scope, None)


class Reader:
    """A client with a token at one server."""

    def __init__(self, session: aiohttp.ClientSession, server: TestServer, secret: str) -> None:
        self.session = session
        self.server = server
        self.headers = {"Authorization": f"Bearer {secret}"}

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> aiohttp.client._RequestContextManager:
        """A request with the token; `If_Range` in `headers` is If-Range."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.request(
            method, self.server.make_url(path), headers={**self.headers, **named}
        )

    def get(self, mxc: Mxc, **headers: str) -> aiohttp.client._RequestContextManager:
        """The media's bytes, through the Matrix face."""
        return self.ask(f"{MATRIX}/{mxc.server_name}/{mxc.media_id}", **headers)

    async def status(self, path: str, **headers: str) -> int:
        """How a GET is answered."""
        async with self.ask(path, **headers) as answer:
            return answer.status

    async def until(self, path: str, status: int, **headers: str) -> None:
        """Asks until a GET is answered so. Raises TimeoutError when it never is."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await self.status(path, **headers) != status:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)

    async def json(self, path: str) -> dict[str, Any]:
        """The JSON of a GET that is answered with 200."""
        async with self.ask(path) as answer:
            found: dict[str, Any] = await answer.json()
            assert answer.status == 200, found
            return found

    async def raw(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a GET whose path no client has tidied."""
        reader, writer = await self.connect(path, "Connection: close")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    async def connect(
        self, path: str, *headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own on which the GET was sent, and nothing read yet."""
        assert self.server.port
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=4096)
        authorization = f"Authorization: {self.headers['Authorization']}"
        lines = (f"GET {path} HTTP/1.1", "Host: archive", authorization, *headers, "", "")
        writer.write("\r\n".join(lines).encode())
        return reader, writer


def state(
    kind: str, content: Any, minute: int = 0, key: str = "", room: str = "!room:a", **fields: Any
) -> dict[str, Any]:
    """A state event, so many minutes after the first of January 2025."""
    return {
        "event_id": f"${secrets.token_hex(8)}",
        "room_id": room,
        "sender": "@alice:archive.test",
        "type": kind,
        "state_key": key,
        "origin_server_ts": 1_735_689_600_000 + 60_000 * minute,
        "content": content,
        **fields,
    }


def member(
    user: str, minute: int = 0, room: str = "!room:a", membership: str = "join", **content: Any
) -> dict[str, Any]:
    """A membership of a user, who wrote it."""
    written = {"membership": membership, **content}
    return state("m.room.member", written, minute, user, room, sender=user)


@asynccontextmanager
async def serving(
    archive: Archive,
    dsn: str,
    policy: CapturePolicy = POLICY,
    *,
    hides_redacted: bool = False,
    access: Access | None = None,
    hot_cache: int = 64 * 1024 * 1024,
    demand: Demand | None = None,
    listener: Listener | None = None,
) -> AsyncIterator[TestServer]:
    """The readers' door, open, and listening to the database."""
    listener = listener or Listener(dsn)
    rules = access or Access()
    async with open_maker(archive.pool, archive.store, archive.folder / "spool", 2) as maker:
        door = Serving(
            archive.pool, archive.store, listener, policy, rules, maker,
            hides_redacted=hides_redacted, hot_cache=hot_cache, demand=demand,
        )  # fmt: skip
        server = TestServer(door.application())
        connected = asyncio.Event()
        listener.on("connected", connected.set)  # whoever listens is called once at the start
        listening = asyncio.create_task(listener.run())
        await connected.wait()
        await server.start_server()
        try:
            yield server
        finally:
            await server.close()
            listening.cancel()
            await asyncio.wait([listening])
