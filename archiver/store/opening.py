"""The object store that the configuration chooses, and its opening at the start."""

from __future__ import annotations

import asyncio
from typing import Literal

import structlog

from archiver.config import Storage
from archiver.errors import StoreUnavailable
from archiver.store.base import BlobStore
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.s3 import S3Store

RETRY_SECONDS = 3.0

log = structlog.get_logger(__name__)


def object_store(storage: Storage) -> BlobStore:
    """The store that `storage.objects` chooses."""
    return _store(storage, storage.objects)


def former_store(storage: Storage) -> BlobStore | None:
    """The store that `storage.move_from` names: where objects were kept before."""
    if storage.move_from in (None, storage.objects):
        return None
    return _store(storage, storage.move_from)


def _store(storage: Storage, name: Literal["filesystem", "s3"]) -> BlobStore:
    if name == "filesystem":
        return FilesystemStore(storage.filesystem.path)
    return S3Store(**dict(storage.s3))


async def open_store(store: HybridStore) -> None:
    """Small media need no object store, so its absence at the start stops nothing."""
    while True:
        try:
            await store.open()
        except StoreUnavailable as error:
            log.warning("the object store is away, large media wait", reason=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
