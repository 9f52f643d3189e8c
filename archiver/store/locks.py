"""Object Lock: what keeps versions of objects in a bucket from being deleted.

Only for buckets that say they have it. A server that has not may take the request for another:
OpenStack Swift writes what it says over the object's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from archiver.store.bucket import Bucket, code_of

DENIED = ("AccessDenied", "403")
UNVERSIONED = "null"  # S3's name for a version that was given no id


def hold(bucket: Bucket, sha256: bytes) -> bool:
    """Put a legal hold on the object. False where it is not there."""
    try:
        found = bucket.client.head_object(Bucket=bucket.name, Key=bucket.key(sha256))
    except ClientError as error:
        if code_of(error) == "404":
            return False
        raise
    set_hold(bucket, sha256, found.get("VersionId", UNVERSIONED), on=True)
    return True


def may_hold(bucket: Bucket, sha256: bytes) -> bool:
    """Whether our keys may set legal holds, asked with the name of an object that is not there.

    For buckets with Object Lock only.
    """
    try:
        bucket.client.put_object_legal_hold(
            Bucket=bucket.name, Key=bucket.key(sha256), LegalHold={"Status": "OFF"}
        )
    except ClientError as error:
        return code_of(error) not in DENIED
    return True


def head(bucket: Bucket, sha256: bytes, version: str) -> Mapping[str, Any] | None:
    """What the bucket tells of a version; None of what is gone, is a marker, or is not told."""
    try:
        return bucket.client.head_object(
            Bucket=bucket.name, Key=bucket.key(sha256), VersionId=version
        )
    except ClientError as error:
        if code_of(error) in ("404", "403", "405"):
            return None
        raise


def is_held(head: Mapping[str, Any] | None) -> bool:
    """Whether a version has a legal hold."""
    return head is not None and head.get("ObjectLockLegalHoldStatus") == "ON"


def said(head: Mapping[str, Any] | None) -> str | None:
    """What keeps a version, in words."""
    if head is None:
        return None
    if until := head.get("ObjectLockRetainUntilDate"):
        return f"a retention ({head.get('ObjectLockMode')}) until {until:%Y-%m-%d %H:%M} UTC"
    return "a legal hold" if is_held(head) else None


def set_hold(bucket: Bucket, sha256: bytes, version: str, *, on: bool) -> None:
    """Put a legal hold on a version, or take it off."""
    bucket.client.put_object_legal_hold(
        Bucket=bucket.name,
        Key=bucket.key(sha256),
        VersionId=version,
        LegalHold={"Status": "ON" if on else "OFF"},
    )
