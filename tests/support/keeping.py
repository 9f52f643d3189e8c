"""What the tests of keeping stand on: media that somebody posted, fetched, and looked at again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.catalogue.targets import Target
from archiver.fetch.archive import Parts, archive_one
from archiver.keep.quarantine import Done, Who, quarantine, release
from archiver.model import Blob, Place
from tests.support.fetching import claim
from tests.support.homeserver import Homeserver
from tests.support.redacting import ALICE, ROOM, media_row, mxc

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ADMIN = Who("@admin:remote.example", "!control:remote.example")
BOB = "@bob:remote.example"
OTHER_ROOM = "!other"
OF_ALICE, OF_ROOM = Target("user", ALICE), Target("room", ROOM)


def media(name: str) -> Target:
    """A media that the events here name."""
    return Target("mxc", str(mxc(name)))


async def archive(ours: Parts, homeserver: Homeserver, **bodies: bytes) -> None:
    """Lets a worker fetch the media that events named."""
    for name, data in bodies.items():
        homeserver.give(mxc(name), data)
    for _ in bodies:
        [job] = await claim(ours.pool)
        await archive_one(job, ours)


async def hide(pool: Pool, target: Target, reason: str = "") -> Done:
    """Quarantines to the end."""
    return [Done(), *[done async for done in quarantine(pool, target, reason, ADMIN)]][-1]


async def show(pool: Pool, target: Target) -> Done:
    """Releases to the end."""
    return [Done(), *[done async for done in release(pool, target, ADMIN)]][-1]


async def states(pool: Pool) -> dict[str, str]:
    """The state of each media by its id."""
    rows = await pool.fetch("SELECT media_id, state FROM media")
    return {row["media_id"]: row["state"] for row in rows}


async def tables(pool: Pool) -> dict[str, int]:
    """How many rows there are of what has to do with bytes."""
    row = await pool.fetchrow(
        "SELECT (SELECT count(*) FROM blob) AS blob, (SELECT count(*) FROM blob_data) AS data,"
        " (SELECT count(*) FROM garbage) AS garbage"
    )
    assert row is not None
    return dict(row)


async def blob_of(pool: Pool, name: str) -> Blob:
    """The blob of a media."""
    sha256 = (await media_row(pool, name))["blob_sha256"]
    row = await pool.fetchrow("SELECT size, place FROM blob WHERE sha256 = $1", sha256)
    assert row is not None
    return Blob(sha256, row["size"], Place(row["place"]))


async def read(ours: Parts, name: str) -> bytes:
    """The bytes of a media that has some."""
    blob = await blob_of(ours.pool, name)
    return b"".join([chunk async for chunk in ours.store.read(blob)])


async def custody(pool: Pool) -> list[tuple[str, str, str, str | None, dict[str, Any]]]:
    """Who did what: actor, place, action, target and what else is told."""
    rows = await pool.fetch("SELECT * FROM custody ORDER BY id")
    return [
        (row["actor"], row["place"], row["action"], row["target"], json.loads(row["detail"]))
        for row in rows
    ]


def file_of(folder: Path, sha256: bytes) -> Path:
    """Where an object is."""
    name = sha256.hex()
    return folder / "objects" / name[:2] / name[2:4] / name
