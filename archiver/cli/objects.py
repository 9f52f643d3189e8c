"""What `archiver doctor` says of the object store."""

from __future__ import annotations

from archiver.config import Storage
from archiver.errors import StoreUnavailable
from archiver.store.base import BlobStore
from archiver.store.opening import object_store
from archiver.store.s3 import S3Store


async def look_at_objects(storage: Storage) -> str:
    """That it works; of a bucket also whether it keeps versions and knows locks.

    Raises StoreUnavailable.
    """
    store = object_store(storage)
    try:
        await store.open()
        await store.check()
        manner = await manner_of(store) if isinstance(store, S3Store) else ""
    finally:
        await store.close()
    return f"{storage.objects} takes and gives objects{manner}"


async def look_at_former(store: BlobStore) -> str:
    """That it works, as long as objects may be left there: it is never made anew.

    Raises StoreUnavailable.
    """
    try:
        await store.check()
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}. What `storage move` has not moved yet cannot be read; once it says that"
            " nothing is left there, take storage.move_from out of the configuration"
        ) from error
    finally:
        await store.close()
    return "it answers; once `storage move` has emptied it, storage.move_from is needed no more"


async def manner_of(store: S3Store) -> str:
    """What goes on the sentence that a bucket works. Raises StoreUnavailable."""
    kind = await store.look()
    if not kind.versioned:
        return "; the bucket keeps no versions"
    said = "; the bucket keeps versions, and all of them are deleted with their object"
    if not kind.locks:
        return f"{said}; it has no Object Lock"
    if await store.may_lock():
        return f"{said}; it has Object Lock, and what is held is locked there"
    return (
        f"{said}; it has Object Lock, but these keys may set no legal holds, so what is held is"
        " not locked there: allow them s3:PutObjectLegalHold and s3:GetObjectLegalHold"
    )
