"""Buckets that keep versions, and holds as locks in those that have Object Lock.

Versions are looked at in OpenStack Swift, too, which has no Object Lock; locks in moto alone,
which refuses to delete a locked version as S3 does. What moto cannot show: keys that lack a
permission (a small server answers as S3 would), and versions from before a bucket's versioning was
suspended, which it forgets (Swift keeps them). It takes any keys, and checks no Content-MD5.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import EndpointConnectionError

from archiver.catalogue import blobs, garbage, holds, locks
from archiver.catalogue.holds import span_of
from archiver.catalogue.targets import LONG_AGO
from archiver.cli.objects import manner_of
from archiver.control.commands.showing import _bytes
from archiver.db.listen import Listener
from archiver.db.migrate import migrate
from archiver.db.pool import open_pool
from archiver.errors import StoreUnavailable
from archiver.fetch.archive import Parts
from archiver.keep import locking as locking_module
from archiver.keep import sweep as sweep_module
from archiver.keep.deletion import Deletion
from archiver.keep.erasure import Erasure
from archiver.keep.locking import Locking
from archiver.keep.moving import Mover, Sizes
from archiver.keep.sweep import Heap, Sweep
from archiver.store import versions as versions_module
from archiver.store.base import MIB
from archiver.store.bucket import Bucket
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from archiver.store.spool import Spool
from tests.support.fetching import INLINE_LIMIT, parts, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN, OF_ROOM, archive, blob_of
from tests.support.moto import Door, Moto
from tests.support.postgres import PostgresProcess
from tests.support.redacting import ALICE, ROOM, image, mxc, push
from tests.support.swift import S3Endpoint

if TYPE_CHECKING:
    from archiver.db.pool import Pool

CAT, DOG = os.urandom(INLINE_LIMIT + 1), os.urandom(INLINE_LIMIT + 2)
PART = 5 * MIB
SEVERAL_PARTS = os.urandom(2 * PART + 1)
EXPLAIN = "EXPLAIN (FORMAT JSON) "


class Side:
    """A bucket, looked at from the side and changed behind the archive's back."""

    def __init__(self, endpoint: S3Endpoint) -> None:
        self.endpoint = endpoint
        self.bucket = Bucket(**endpoint.settings(name=f"test-{uuid.uuid4().hex}", prefix="media/"))

    def make(self, *, locks: bool = False, retention: str | None = None) -> None:
        client, name = self.bucket.client, self.bucket.name
        if locks:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
        else:
            client.create_bucket(Bucket=name)
            self.keep_versions()
        if retention:
            rule: Any = {"DefaultRetention": {"Mode": retention, "Days": 1}}
            client.put_object_lock_configuration(
                Bucket=name,
                ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},
            )

    def keep_versions(self, *, on: bool = True) -> None:
        self.bucket.client.put_bucket_versioning(
            Bucket=self.bucket.name,
            VersioningConfiguration={"Status": "Enabled" if on else "Suspended"},
        )

    def put(self, sha256: bytes, data: bytes, more: str = "") -> None:
        key = self.bucket.key(sha256) + more
        self.bucket.client.put_object(Bucket=self.bucket.name, Key=key, Body=data)

    def hide(self, sha256: bytes) -> None:
        self.bucket.delete(sha256)

    def versions(self) -> list[bytes | None]:
        """The digests of everything there; None for a marker or what is not ours."""
        page = self.bucket.client.list_object_versions(Bucket=self.bucket.name)
        keys = [version["Key"] for version in page.get("Versions", ())]
        found: list[bytes | None] = [*map(self.bucket.digest, keys)]
        return found + [None for _ in page.get("DeleteMarkers", ())]

    def is_locked(self, sha256: bytes) -> bool:
        held = self.bucket.client.get_object_legal_hold(
            Bucket=self.bucket.name, Key=self.bucket.key(sha256)
        )
        return held["LegalHold"].get("Status") == "ON"

    def store(self, door: Door | None = None) -> S3Store:
        endpoint = door.endpoint if door else self.endpoint
        parts = {"single_size": PART, "part_size": PART}
        return S3Store(**endpoint.settings(bucket=self.bucket.name, prefix="media/", **parts))


@pytest.fixture(params=["swift", "moto"])
def side(request: pytest.FixtureRequest) -> Side:
    """A bucket that does not exist yet, in each kind of server."""
    server = request.getfixturevalue(request.param)
    return Side(server.endpoint)


@asynccontextmanager
async def opened(side: Side) -> AsyncIterator[S3Store]:
    store = side.store()
    try:
        await store.open()
        yield store
    finally:
        await store.close()
        side.bucket.close()


@asynccontextmanager
async def body_of(folder: Path, data: bytes) -> AsyncIterator[Any]:
    async with Spool(folder / "bodies", INLINE_LIMIT).body() as body:
        await body.write(data)
        await body.finish()
        yield body


@pytest.mark.parametrize("data", [b"small", CAT, SEVERAL_PARTS], ids=["memory", "disk", "parts"])
async def test_no_version_stays_behind(side: Side, tmp_path: Path, data: bytes) -> None:
    """Whatever is put twice, replaced or deleted twice."""
    side.make()
    async with opened(side) as store, body_of(tmp_path, data) as body:
        await store.put(body)
        await store.put(body)
        assert side.versions() == [body.sha256]
        await store.replace(body)
        assert side.versions() == [body.sha256]
        side.put(body.sha256, b"damaged")
        await store.replace(body)
        assert side.versions() == [body.sha256]
        assert b"".join([chunk async for chunk in store.read(body.sha256)]) == data
        for _ in range(2):
            await store.delete(body.sha256)
            assert side.versions() == []
        assert await store.size(body.sha256) is None


async def test_every_version_and_marker_of_that_very_key_goes(side: Side) -> None:
    """However they came, and not what merely begins as its name does."""
    side.make()
    sha256, other = hashlib.sha256(b"x").digest(), hashlib.sha256(b"y").digest()
    for _ in range(2):
        side.put(sha256, b"x")
        side.hide(sha256)
    side.put(sha256, b"x", more="-longer")
    side.put(other, b"y")
    async with opened(side) as store:
        await store.delete(sha256)
        left = side.versions()
        assert sorted(left, key=str) == sorted([None, other], key=str)


async def test_a_bucket_may_begin_to_keep_versions_at_any_time(side: Side) -> None:
    """The archive notices by the first object that it deletes."""
    side.bucket.ensure()
    sha256 = hashlib.sha256(b"x").digest()
    async with opened(side) as store:
        side.put(sha256, b"x")
        side.keep_versions()
        side.put(sha256, b"x")
        await store.delete(sha256)
        assert side.versions() == []


async def test_what_was_there_before_versioning_was_suspended_goes_too(
    s3: S3Endpoint, tmp_path: Path
) -> None:
    """By a put of other bytes as by a delete."""
    side = Side(s3)
    side.make()
    async with body_of(tmp_path, b"right") as body:
        for data in (b"damaged", b"bad"):
            side.put(body.sha256, data)
        side.keep_versions(on=False)
        async with opened(side) as store:
            await store.replace(body)
            assert side.versions() == [body.sha256]
            assert await store.size(body.sha256) == 5
        side.keep_versions()
        side.put(body.sha256, b"right")
        side.keep_versions(on=False)
        side.put(body.sha256, b"right")
        assert len(side.versions()) > 1
        async with opened(side) as store:
            await store.delete(body.sha256)
            assert side.versions() == []


# What is held.


@pytest.fixture
def locking_side(moto: Moto) -> Side:
    """A bucket with Object Lock."""
    side = Side(moto.endpoint)
    side.make(locks=True)
    return side


@pytest.fixture
async def door(locking_side: Side) -> AsyncIterator[Door]:
    """The way to it, which is open."""
    door = Door(locking_side.endpoint)
    await door.open()
    yield door
    await door.close()


@pytest.fixture
async def ours(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, locking_side: Side, door: Door
) -> AsyncIterator[Parts]:
    """An archive with two large media in that bucket."""
    store = locking_side.store(door)
    async with parts(pool, tmp_path, homeserver.url, objects=store) as built:
        await push(pool, image("$a", "cat"), image("$b", "dog"))
        await archive(built, homeserver, cat=CAT, dog=DOG)
        yield built
    await store.close()
    locking_side.bucket.close()


@pytest.fixture
def locking(ours: Parts, database_url: str) -> Locking:
    return Locking(database_url, ours.pool, ours.store)


async def hold(pool: Pool, *targets: str) -> None:
    async with pool.acquire() as conn:
        for target in targets:
            await holds.place(conn, target, "a case", "shell:root")


async def release(pool: Pool, *targets: str) -> None:
    async with pool.acquire() as conn:
        for target in targets:
            await holds.release(conn, target)


async def erase(ours: Parts) -> None:
    """All that is not held goes, and its bytes at once."""
    async for _ in Erasure(ours.pool, OF_ROOM, ADMIN).run():
        pass
    await collect(ours)


async def collect(ours: Parts) -> None:
    await ours.pool.execute("UPDATE garbage SET due_at = now()")
    await Deletion(ours.pool, ours.store, None).work()


async def locked(ours: Parts, side: Side) -> set[str]:
    """The media that the bucket has locked."""
    names = [row[0] for row in await ours.pool.fetch("SELECT media_id FROM media")]
    return {name for name in names if side.is_locked((await blob_of(ours.pool, name)).sha256)}


DIGEST = "sha256:" + hashlib.sha256(CAT).hexdigest()


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (str(mxc("cat")), {"cat"}),
        (DIGEST, {"cat"}),
        ("$b", {"dog"}),
        (ALICE, {"cat", "dog"}),
        (ROOM, {"cat", "dog"}),
        ("2000-01-01..2100-01-01", {"cat", "dog"}),
        ("2000-01-01..2000-01-02", set()),
        ("!another:room", set()),
    ],
    ids=["mxc", "bytes", "event", "user", "room", "span", "another span", "another room"],
)
async def test_what_is_held_is_locked_as_long(
    ours: Parts, locking: Locking, locking_side: Side, target: str, found: set[str]
) -> None:
    """Whatever the hold names; then it can be deleted."""
    await hold(ours.pool, target)
    await locking.once()
    assert await locked(ours, locking_side) == found
    await locking.once()
    assert await locked(ours, locking_side) == found
    await release(ours.pool, target)
    await locking.once()
    assert await locked(ours, locking_side) == set()
    assert await ours.pool.fetchval("SELECT count(*) FROM object_lock") == 0
    await erase(ours)
    assert locking_side.versions() == []


async def test_show_tells_of_the_lock(ours: Parts, locking: Locking) -> None:
    """Once the bucket has it."""

    async def shown() -> str:
        async with ours.pool.acquire() as conn:
            row = await blobs.find(conn, hashlib.sha256(CAT).digest())
        assert row is not None
        return _bytes(row)

    assert "locked" not in await shown()
    await hold(ours.pool, ROOM)
    await locking.once()
    assert "locked in its bucket since 20" in await shown()


async def test_what_two_hold_is_locked_until_both_let_go(
    ours: Parts, locking: Locking, locking_side: Side
) -> None:
    """As is what only one of two holds covers."""
    await hold(ours.pool, str(mxc("cat")), ROOM)
    await locking.once()
    await release(ours.pool, ROOM)
    await locking.once()
    assert await locked(ours, locking_side) == {"cat"}
    await release(ours.pool, str(mxc("cat")))
    await locking.once()
    assert await locked(ours, locking_side) == set()


async def test_what_comes_later_is_locked_as_well(
    ours: Parts, locking: Locking, locking_side: Side, homeserver: Homeserver
) -> None:
    """A room's hold is on what is archived under it."""
    await hold(ours.pool, ROOM)
    await locking.once()
    await push(ours.pool, image("$c", "bird"))
    await archive(ours, homeserver, bird=os.urandom(INLINE_LIMIT + 3))
    assert await locked(ours, locking_side) == {"cat", "dog"}
    await locking.once()
    assert await locked(ours, locking_side) == {"cat", "dog", "bird"}


async def test_a_liar_about_the_time_escapes_no_lock(
    ours: Parts, locking: Locking, locking_side: Side
) -> None:
    """What was pushed in the span is in it, whatever its sender says."""
    await ours.pool.execute(
        "UPDATE event SET sent_at = '1970-01-01', received_at = '2024-06-15' WHERE event_id = '$a'"
    )
    await hold(ours.pool, "2024-06-10..2024-06-20")
    await locking.once()
    assert await locked(ours, locking_side) == {"cat"}


async def test_an_outage_is_made_good(
    ours: Parts, locking: Locking, locking_side: Side, door: Door
) -> None:
    """Of a hold and of a release, both said while nobody answered."""
    await hold(ours.pool, ROOM)
    await door.close()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await locking.once()
    await door.open()
    await locking.once()
    assert await locked(ours, locking_side) == {"cat", "dog"}
    await release(ours.pool, ROOM)
    await door.close()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await locking.once()
    await door.open()
    await locking.once()
    assert await locked(ours, locking_side) == set()


@pytest.mark.parametrize("name", ["cat", "dog"])
async def test_one_that_the_bucket_refuses_does_not_hinder_others(
    ours: Parts, locking: Locking, locking_side: Side, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither their lock nor its end."""
    monkeypatch.setattr(locking_module, "AT_ONCE", 1)
    bucket = ours.store.bucket
    assert bucket is not None
    key = bucket._bucket.key((await blob_of(ours.pool, name)).sha256)

    def refuse(request: AWSPreparedRequest, **_: object) -> None:
        if key in request.url and "legal-hold" in request.url:
            raise EndpointConnectionError(endpoint_url=request.url)

    refusing = bucket._bucket.client.meta.events
    refusing.register("before-send.s3", refuse)
    await hold(ours.pool, ROOM)
    with pytest.raises(StoreUnavailable):
        await locking.once()
    assert await locked(ours, locking_side) == {"cat", "dog"} - {name}
    refusing.unregister("before-send.s3", refuse)
    await locking.once()
    assert await locked(ours, locking_side) == {"cat", "dog"}
    refusing.register("before-send.s3", refuse)
    await release(ours.pool, ROOM)
    with pytest.raises(StoreUnavailable):
        await locking.once()
    assert await locked(ours, locking_side) == {name}


async def test_a_span_is_walked_through_once(
    ours: Parts, locking: Locking, locking_side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that what is new at its end is looked at, and once a day all before it."""
    await hold(ours.pool, "2000-01-01..2100-01-01")
    await locking.once()
    await ours.pool.execute("DELETE FROM object_lock")
    await ours.pool.execute("UPDATE event SET sent_at = now() WHERE event_id = '$a'")
    await ours.pool.execute("UPDATE event SET sent_at = '2024-01-01' WHERE event_id = '$b'")
    await locking.once()
    cat, dog = [(await blob_of(ours.pool, name)).sha256 for name in ("cat", "dog")]
    known = "SELECT array_agg(sha256) FROM object_lock"
    assert await ours.pool.fetchval(known) == [cat]
    monkeypatch.setattr(locking_module, "WALK_SECONDS", -1.0)
    await locking.once()
    assert set(await ours.pool.fetchval(known)) == {cat, dog}


async def test_a_span_that_is_held_anew_is_walked_through_anew(
    ours: Parts, locking: Locking, database_url: str, locking_side: Side
) -> None:
    """Another process may have unlocked it since."""
    span = "2000-01-01..2100-01-01"
    await ours.pool.execute("UPDATE event SET sent_at = '2024-01-01'")
    await hold(ours.pool, span)
    await locking.once()
    await release(ours.pool, span)
    await Locking(database_url, ours.pool, ours.store).once()
    assert await locked(ours, locking_side) == set()
    await hold(ours.pool, span)
    await locking.once()
    assert await locked(ours, locking_side) == {"cat", "dog"}


async def test_what_was_locked_in_another_bucket_is_locked_in_this_one(
    ours: Parts, locking: Locking, locking_side: Side, database_url: str
) -> None:
    """Somebody copied all objects, and configured the copy."""
    await hold(ours.pool, ROOM)
    await locking.once()
    copy = Side(locking_side.endpoint)
    copy.make(locks=True)
    for data in (CAT, DOG):
        copy.put(hashlib.sha256(data).digest(), data)
    assert await locked(ours, copy) == set()
    async with opened(copy) as bucket:
        store = HybridStore(PostgresStore(ours.pool), bucket, INLINE_LIMIT)
        await Locking(database_url, ours.pool, store).once()
        assert await locked(ours, copy) == {"cat", "dog"}


async def test_locking_outlives_the_database(
    own_postgres: PostgresProcess,
    tmp_path: Path,
    homeserver: Homeserver,
    locking_side: Side,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped while it locks, it goes on once there is a database again."""
    monkeypatch.setattr(locking_module, "AGAIN_SECONDS", 0.05)
    url, asked = own_postgres.url, threading.Event()
    stopped = threading.Event()

    def wait(**_: object) -> None:
        asked.set()
        stopped.wait(60)

    store = locking_side.store()
    store._bucket.client.meta.events.register("before-send.s3.PutObjectLegalHold", wait)
    async with (
        open_pool(url, 4) as pool,
        parts(pool, tmp_path, homeserver.url, objects=store) as ours,
    ):
        async with pool.acquire() as conn:
            await migrate(conn)
        await push(pool, image("$a", "cat"))
        await archive(ours, homeserver, cat=CAT)
        await hold(pool, ROOM)
        working = asyncio.create_task(Locking(url, pool, ours.store).run())
        await asyncio.to_thread(asked.wait, 60)
        await asyncio.to_thread(own_postgres.stop)
        stopped.set()
        await asyncio.to_thread(own_postgres.start)

        async def known() -> bool:
            try:
                return bool(
                    await pool.fetchval("SELECT bool_and(locked_at IS NOT NULL) FROM object_lock")
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return False

        await until(known, "it is locked, and known to be")
        assert await locked(ours, locking_side) == {"cat"}
        assert not working.done()
        working.cancel()
        await asyncio.wait([working])
    await store.close()


@pytest.mark.parametrize("field", ["", "<LastModified>soon</LastModified>"])
async def test_an_answer_that_lacks_something_is_an_outage(field: str) -> None:
    """Not the end of whatever asked."""
    lacking = f"{XML}<ListVersionsResult><Version>{field}</Version></ListVersionsResult>"
    async with strict(lambda _request: lacking) as store:
        with pytest.raises(StoreUnavailable, match="in no way that S3 does"):
            async for _ in store.hidden():
                pass


async def test_a_bucket_that_gives_no_ids_is_no_surprise() -> None:
    """A server may say that it has Object Lock, and give versions no id."""
    async with strict(lambda _request: "<nothing/>") as store:
        assert await store.lock(bytes(32))


async def test_a_hold_is_heard_of_at_once(
    ours: Parts, locking: Locking, locking_side: Side, database_url: str
) -> None:
    """From whatever process it comes; and so is its release."""
    listener = Listener(database_url)
    listener.on("hold_changed", locking.wake)

    async def are(names: set[str]) -> bool:
        return await locked(ours, locking_side) == names

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(listener.run()), group.create_task(locking.run())]
        for _ in range(4):  # more often than the rounds with which both begin
            await hold(ours.pool, "$a")
            await until(lambda: are({"cat"}), "locked")
            await release(ours.pool, "$a")
            await until(lambda: are(set()), "unlocked")
        for task in tasks:
            task.cancel()


async def test_one_of_all_processes_locks(
    ours: Parts, locking: Locking, locking_side: Side
) -> None:
    """Another one leaves it to that."""
    await hold(ours.pool, ROOM)
    async with ours.pool.acquire() as conn:
        await conn.execute("SELECT pg_advisory_lock($1)", 0x6D6D61_0C)
        assert not await locking.once()
        await conn.execute("SELECT pg_advisory_unlock($1)", 0x6D6D61_0C)
    assert await locked(ours, locking_side) == set()


async def test_deleting_takes_our_own_lock_off(
    ours: Parts, locking: Locking, locking_side: Side
) -> None:
    """The hold is released, and nobody came to unlock yet."""
    await hold(ours.pool, ROOM)
    await locking.once()
    await erase(ours)
    assert await locked(ours, locking_side) == {"cat", "dog"}
    await release(ours.pool, ROOM)
    await erase(ours)
    assert locking_side.versions() == []
    assert await ours.pool.fetchval("SELECT count(*) FROM object_lock") == 0


async def test_what_another_locked_waits_and_holds_nothing_up(
    ours: Parts, locking_side: Side
) -> None:
    """It stays garbage, to be tried again, and the other bytes go."""
    cat = (await blob_of(ours.pool, "cat")).sha256
    dog = (await blob_of(ours.pool, "dog")).sha256
    lock: Any = {"Bucket": locking_side.bucket.name, "Key": locking_side.bucket.key(cat)}
    locking_side.bucket.client.put_object_legal_hold(**lock, LegalHold={"Status": "ON"})
    async for _ in Erasure(ours.pool, OF_ROOM, ADMIN).run():
        pass
    await ours.pool.execute(
        "UPDATE garbage SET due_at = now() - CASE sha256"
        " WHEN $1 THEN interval '1 hour' ELSE '1 second' END",
        cat,
    )
    await Deletion(ours.pool, ours.store, None).work()
    assert locking_side.versions() == [cat]
    [left] = await ours.pool.fetch("SELECT sha256, due_at > now() AS waits FROM garbage")
    assert (left["sha256"], left["waits"]) == (cat, True)
    assert dog not in locking_side.versions()
    locking_side.bucket.client.put_object_legal_hold(**lock, LegalHold={"Status": "OFF"})
    await collect(ours)
    assert locking_side.versions() == []


async def test_a_retention_of_the_bucket_is_named(moto: Moto, tmp_path: Path) -> None:
    """What is under it can be put and replaced, and not deleted."""
    side = Side(moto.endpoint)
    side.make(locks=True, retention="COMPLIANCE")
    async with opened(side) as store, body_of(tmp_path, b"kept") as body:
        await store.put(body)
        await store.put(body)
        assert side.versions() == [body.sha256]
        with pytest.raises(StoreUnavailable, match=r"a retention \(COMPLIANCE\) until 20"):
            await store.delete(body.sha256)
        await store.replace(body)
        assert side.versions() == [body.sha256] * 2
        assert await store.leftovers(remove=False) == (0, 0)


async def test_the_lock_goes_over_to_repaired_bytes(
    ours: Parts, locking: Locking, locking_side: Side, tmp_path: Path
) -> None:
    """And the damaged ones go, though they were locked."""
    await hold(ours.pool, "$a")
    await locking.once()
    sha256 = (await blob_of(ours.pool, "cat")).sha256
    async with body_of(tmp_path, CAT) as body:
        await ours.store.replace_object(body)
    assert await locked(ours, locking_side) == {"cat"}
    assert [one for one in locking_side.versions() if one == sha256] == [sha256]
    await release(ours.pool, "$a")
    await locking.once()
    assert await locked(ours, locking_side) == set()


async def test_what_came_back_is_locked_again(
    ours: Parts, locking: Locking, locking_side: Side
) -> None:
    """After its object was lost, with the lock that was on it."""
    await hold(ours.pool, ROOM)
    await locking.once()
    sha256 = (await blob_of(ours.pool, "cat")).sha256
    bucket = ours.store.bucket
    assert bucket is not None
    assert await bucket.unlock(sha256)
    await ours.store.delete_object(sha256)
    locking_side.put(sha256, CAT)
    await ours.pool.execute("UPDATE blob SET repaired_at = now() WHERE sha256 = $1", sha256)
    await locking.once()
    assert await locked(ours, locking_side) == {"cat", "dog"}


async def test_what_moves_into_the_bucket_is_locked_there(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, locking_side: Side, database_url: str
) -> None:
    """Before the move there is nothing to lock, and nothing breaks."""
    async with parts(pool, tmp_path, homeserver.url) as built:
        await push(pool, image("$a", "cat"))
        await archive(built, homeserver, cat=CAT)
        former, bucket = FilesystemStore(tmp_path / "objects"), locking_side.store()
        store = HybridStore(PostgresStore(pool), bucket, INLINE_LIMIT, former)
        locking = Locking(database_url, pool, store)
        await hold(pool, ROOM)
        await locking.once()
        mover = Mover(pool, store, built.spool, ADMIN)
        async for _ in mover.from_former("filesystem", Sizes(-1, 2**62)):
            pass
        await pool.execute("UPDATE object_lock SET due_at = now()")
        await locking.once()
        assert await locked(built, locking_side) == {"cat"}
        await bucket.close()


async def test_what_moves_out_of_the_bucket_leaves_nothing_locked_there(
    ours: Parts, locking: Locking, locking_side: Side, tmp_path: Path
) -> None:
    """It is held all the same, where it is now."""
    await hold(ours.pool, ROOM)
    await locking.once()
    bucket = ours.store.bucket
    folder = FilesystemStore(tmp_path / "objects")
    await folder.open()
    store = HybridStore(PostgresStore(ours.pool), folder, INLINE_LIMIT, bucket)
    assert store.bucket is bucket
    async for _ in Mover(ours.pool, store, ours.spool, ADMIN).from_former("s3", Sizes(-1, 2**62)):
        pass
    await ours.pool.execute("UPDATE leftover SET due_at = now()")
    await Deletion(ours.pool, store, None).work()
    assert locking_side.versions() == []
    assert await ours.pool.fetchval("SELECT count(*) FROM object_lock") == 0
    assert await store.has_object(await blob_of(ours.pool, "cat"))


async def test_nothing_is_locked_where_nothing_can_be(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, s3: S3Endpoint, database_url: str
) -> None:
    """Swift would write the lock over the object's bytes."""
    side = Side(s3)
    store = side.store()
    async with parts(pool, tmp_path, homeserver.url, objects=store) as ours:
        await push(pool, image("$a", "cat"))
        await archive(ours, homeserver, cat=CAT)
        await hold(pool, ROOM)
        await Locking(database_url, pool, ours.store).once()
        assert await pool.fetchval("SELECT count(*) FROM object_lock") == 0
        sha256 = (await blob_of(pool, "cat")).sha256
        assert not await store.unlock(sha256)
        assert b"".join([chunk async for chunk in store.read(sha256)]) == CAT
        await release(pool, ROOM)
        await erase(ours)
        assert await store.size(sha256) is None
    await store.close()
    side.bucket.close()


# What is left over.


async def test_sweeping_finds_hidden_versions(
    ours: Parts, locking: Locking, locking_side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those behind an object go at once, those behind a marker as what has no row; but not what
    a marker hides that has a row: that may be all there is."""
    cat = (await blob_of(ours.pool, "cat")).sha256
    dog = (await blob_of(ours.pool, "dog")).sha256
    stray = hashlib.sha256(b"stray").digest()
    locking_side.put(cat, CAT)
    locking_side.put(stray, b"stray")
    locking_side.hide(stray)
    locking_side.hide(dog)
    before = len(locking_side.versions())
    assert (await swept(ours, delete=True)).leftovers == Heap()
    assert len(locking_side.versions()) == before
    monkeypatch.setattr(versions_module, "STALE", timedelta(minutes=-1))
    monkeypatch.setattr(sweep_module, "BYTES_AFTER", timedelta(minutes=-1))
    told = await swept(ours, delete=False)
    assert (told.leftovers, told.objects) == (Heap(1, len(CAT)), Heap(1, 5))
    assert len(locking_side.versions()) == before
    assert await swept(ours, delete=True) == told
    await collect(ours)
    assert sorted(filter(None, locking_side.versions())) == sorted([cat, dog])


async def swept(ours: Parts, *, delete: bool) -> Any:
    return [one async for one in Sweep(ours.pool, ours.store, ADMIN, delete=delete).run()][-1]


# What a server may refuse.


XML = '<?xml version="1.0" encoding="UTF-8"?>'
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
DENIED = f"{XML}<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@asynccontextmanager
async def strict(allowed: Callable[[web.Request], str | None]) -> AsyncIterator[S3Store]:
    """A store whose server answers what it is told, or denies it, as S3 does."""

    async def answer(request: web.Request) -> web.Response:
        said = allowed(request)
        status = 403 if said is None else 200
        return web.Response(status=status, text=said or DENIED, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        side = Side(S3Endpoint(str(server.make_url("/")).rstrip("/"), "us-east-1", "a", "b"))
        store = side.store()
        try:
            yield store
        finally:
            await store.close()


async def test_keys_that_may_not_ask_are_no_hindrance() -> None:
    """Then the bucket is taken for one without versions."""
    async with strict(lambda request: "" if request.method == "HEAD" else None) as store:
        assert await store.look() == (False, False)
        assert "keeps no versions" in await manner_of(store)


async def test_doctor_tells_of_versions_and_locks(moto: Moto) -> None:
    """And whether our keys may lock."""
    for locks_too, said in ((False, "it has no Object Lock"), (True, "what is held is locked")):
        side = Side(moto.endpoint)
        side.make(locks=locks_too)
        async with opened(side) as store:
            assert said in await manner_of(store)

    def told(request: web.Request) -> str | None:
        if "object-lock" in request.query:
            return (
                f"{XML}<ObjectLockConfiguration {NAMESPACE}><ObjectLockEnabled>Enabled"
                "</ObjectLockEnabled></ObjectLockConfiguration>"
            )
        return None

    async with strict(told) as store:
        assert "may set no legal holds" in await manner_of(store)


async def test_looking_reads_no_table_whole(pool: Pool) -> None:
    """However many events, media and locked objects there are."""
    await pool.execute(
        "INSERT INTO event (event_id, room_id, sender, content, source, has_media)"
        " SELECT '$' || n, '!' || n % 500, '@' || n % 500, '{}', 'push', true"
        " FROM generate_series(1, 20000) AS n;"
        "INSERT INTO blob (sha256, size, place)"
        " SELECT sha256(n::text::bytea), 1, 'object' FROM generate_series(1, 20000) AS n;"
        "INSERT INTO media (server_name, media_id, state, blob_sha256)"
        " SELECT 'a.org', n::text, 'ready', sha256(n::text::bytea)"
        " FROM generate_series(1, 20000) AS n;"
        "INSERT INTO reference (event_id, server_name, media_id, role)"
        " SELECT '$' || n, 'a.org', n::text, 'content' FROM generate_series(1, 20000) AS n;"
        "INSERT INTO object_lock (sha256, locked_at)"
        " SELECT sha256(n::text::bytea), now() FROM generate_series(1, 15000) AS n;"
        "INSERT INTO hold (kind, target, reason, holder)"
        " SELECT 'room', '!' || n, 'x', 'x' FROM generate_series(1, 20) AS n;"
        "ANALYZE"
    )
    span = span_of("2000-01-01..2100-01-01")
    assert span
    # A page of events is to these twenty thousand what it is to tens of millions.
    asked: list[tuple[str, tuple[object, ...]]] = [
        (locks.ENLIST_MEDIA, ("a.org", "1")),
        (locks.ENLIST_BYTES, (b"x" * 32,)),
        (locks.ENLIST_EVENTS, ([f"${n}" for n in range(30)],)),
        (locks.WALKS["room"], ("!1", LONG_AGO, "", 300)),
        (locks.WALKS["user"], ("@1", LONG_AGO, "", 300)),
        (locks.WALKS["event"], ("$1", LONG_AGO, "", 300)),
        (locks.IN_SPAN, (*span, LONG_AGO, "", 100)),
        (locks.DUE, (100,)),
        (locks.LISTED, (b"", 100)),
        (locks.ANEW, (b"", "a bucket", 100)),
    ]
    for statement, arguments in asked:
        plan = orjson.loads(await pool.fetchval(EXPLAIN + statement, *arguments))
        whole = [node for node in _nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"]
        assert {node["Relation Name"] for node in whole} <= {"hold"}, statement


def _nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for inner in node.get("Plans", ()) for found in _nodes(inner))]


async def test_garbage_that_is_put_again_stays_locked_or_not(
    ours: Parts, locking: Locking, locking_side: Side
) -> None:
    """Bytes that were let go, and came again, are not deleted, nor is their lock taken off."""
    await hold(ours.pool, ROOM)
    await locking.once()
    async with ours.pool.acquire() as conn:
        await garbage.discard(conn, (await blob_of(ours.pool, "cat")).sha256)
    await collect(ours)
    assert await locked(ours, locking_side) == {"cat", "dog"}
