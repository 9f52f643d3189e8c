"""Buckets that keep versions. Everything here blocks, as `Bucket` does.

In such a bucket a put hides the version before, and a delete hides all of them under a marker:
nothing is gone until it is deleted by the id of its version. A bucket whose versioning was
suspended has those that were made before, and one more, whose id is "null".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import structlog
from botocore.exceptions import ClientError

from archiver.store import locks
from archiver.store.base import Leftovers, ObjectLocked, Stored
from archiver.store.bucket import STALE, Bucket, code_of

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Kind(NamedTuple):
    """Whether a bucket keeps, or once kept, versions; and whether it has Object Lock."""

    versioned: bool
    locks: bool


class Version(NamedTuple):
    """A version of an object, or a marker that says it was deleted."""

    key: str
    id: str
    at: datetime
    is_latest: bool
    size: int | None  # None: a marker


def kind_of(bucket: Bucket) -> Kind:
    """What the bucket says of itself. What a server does not know, or does not tell, is not so."""
    client, name = bucket.client, bucket.name
    status = _told("GetBucketVersioning", lambda: client.get_bucket_versioning(Bucket=name))
    lock = _told(
        "GetBucketObjectLockConfiguration",
        lambda: client.get_object_lock_configuration(Bucket=name),
    )
    # Never by trial: OpenStack Swift takes a legal hold for the object's new bytes.
    enabled = lock is not None and (
        lock.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
    )
    return Kind(enabled or bool(status and status.get("Status")), enabled)


def delete(bucket: Bucket, sha256: bytes) -> None:
    """Remove every version and every marker, the newest last: what comes meanwhile stays.

    Raises ObjectLocked.
    """
    for version in reversed(list(_versions_of(bucket, sha256))):
        _delete(bucket, sha256, version.id)


def supersede(bucket: Bucket, sha256: bytes, ours: str | None) -> None:
    """Remove what is older than our version, or than the latest where nobody said which is ours.
    A legal hold goes over to it; what another lock keeps stays hidden."""
    versions = list(_versions_of(bucket, sha256))
    objects = [version for version in versions if version.size is not None]
    found = (one for one in objects if (one.is_latest if ours is None else one.id == ours))
    mine = next(found, None)
    if mine is None:
        return  # somebody deleted it meanwhile
    older = objects[objects.index(mine) + 1 :]
    older += [one for one in versions if one.size is None and one.at <= mine.at]
    for version in older:
        if version.size is not None and locks.is_held(locks.head(bucket, sha256, version.id)):
            locks.set_hold(bucket, sha256, mine.id, on=True)
            locks.set_hold(bucket, sha256, version.id, on=False)
        try:
            _delete(bucket, sha256, version.id)
        except ObjectLocked as error:
            log.warning("a version that was replaced is still in the bucket", reason=str(error))


def release(bucket: Bucket, sha256: bytes) -> None:
    """Take the legal holds off all versions. Fine where there are none: who may not ask for them
    is not told of them either."""
    for version in _versions_of(bucket, sha256):
        if version.size is not None:
            locks.set_hold(bucket, sha256, version.id, on=False)


def hidden(bucket: Bucket) -> Iterator[list[Stored]]:
    """Objects that a marker hides and whose bytes are still there, in the order of their keys;
    the size is that of all versions, and the time that of the marker."""
    for page in _pages(bucket, bucket.prefix):
        markers = [one for one in page if one.is_latest and one.size is None]
        found = []
        for marker in markers:
            if digest := bucket.digest(marker.key):
                size = sum(one.size or 0 for one in _versions_of(bucket, digest))
                found.append(Stored(digest, size, marker.at))
        yield found


def tidy(bucket: Bucket, *, remove: bool) -> Leftovers:
    """Counts, or removes, what objects that are there hide since more than a day.

    What a marker hides is left alone: it may be all that there is.
    """
    oldest = datetime.now(UTC) - STALE
    number = size = kept = 0
    there = ""  # the key whose latest version was seen to be an object
    for page in _pages(bucket, bucket.prefix):
        for version in page:
            if version.is_latest:
                there = "" if version.size is None else version.key
                continue
            digest = bucket.digest(version.key)
            if digest is None or version.key != there or version.at >= oldest:
                continue
            try:
                if remove:
                    _delete(bucket, digest, version.id)
            except ObjectLocked:
                kept += 1
            else:
                number, size = number + 1, size + (version.size or 0)
    if kept:
        log.warning("hidden versions stay in the bucket because of their locks", versions=kept)
    return Leftovers(number, size)


def _told(permission: str, ask: Callable[[], T]) -> T | None:
    """The answer; None from a server that does not know the question, or does not let us ask."""
    try:
        return ask()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code_of(error) == "NoSuchBucket" or (status >= 500 and status != 501):
            raise
        if status == 403:
            log.warning("the bucket does not tell what it is", permission=f"s3:{permission}")
        return None


def _pages(bucket: Bucket, prefix: str) -> Iterator[list[Version]]:
    """Versions and markers, a page at a time: by key, then the latest first."""
    pages = bucket.client.get_paginator("list_object_versions")
    for page in pages.paginate(Bucket=bucket.name, Prefix=prefix):
        found = [
            Version(
                one["Key"], one["VersionId"], one["LastModified"], one["IsLatest"], one["Size"]
            )
            for one in page.get("Versions", ())
        ]
        found += [
            Version(one["Key"], one["VersionId"], one["LastModified"], one["IsLatest"], None)
            for one in page.get("DeleteMarkers", ())
        ]
        # Stable: the server's own order within a key tells what came first within a second.
        yield sorted(found, key=lambda one: (one.key.encode(), not one.is_latest))


def _versions_of(bucket: Bucket, sha256: bytes) -> Iterator[Version]:
    key = bucket.key(sha256)
    for page in _pages(bucket, key):
        yield from (version for version in page if version.key == key)


def _delete(bucket: Bucket, sha256: bytes, version: str) -> None:
    try:
        bucket.delete(sha256, version)
    except ClientError as error:
        if code_of(error) not in locks.DENIED:
            # OpenStack Swift does it and complains, where versioning is suspended.
            if all(one.id != version for one in _versions_of(bucket, sha256)):
                return
            raise
        lock = locks.said(locks.head(bucket, sha256, version))
        if lock is None:
            raise
        raise ObjectLocked(
            f"S3 bucket {bucket.name} does not let go of {sha256.hex()} because of {lock}, which"
            " the archive has not set or cannot take off: its bytes stay until that ends, and are"
            " tried again every day"
        ) from error
