"""What a store does without us: so many bodies of one size, eight at a time, durable after each.

    python -m bench.bare_store KIND SIZE COUNT

takes how to reach the store as JSON on standard input and prints the seconds it took. The bodies
are random and differ in their first bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import boto3
from botocore.config import Config

AT_ONCE = 8
TABLE = """
CREATE TABLE IF NOT EXISTS bare (id bytea PRIMARY KEY, data bytea);
ALTER TABLE bare ALTER COLUMN data SET STORAGE EXTERNAL;
"""
Bodies = list[bytes]


def bodies(size: int, count: int) -> Bodies:
    """`count` different bodies of `size` bytes."""
    rest = os.urandom(size - 16)
    return [secrets.token_bytes(16) + rest for _ in range(count)]


def directory(made: Bodies, folder: str) -> float:
    """A file each: written, synced, renamed, and its folder synced."""

    def put(body: bytes) -> None:
        path = Path(folder, secrets.token_hex(16))
        with path.open("xb") as file:
            file.write(body)
            os.fsync(file.fileno())
        path.rename(path.with_suffix(".object"))
        descriptor = os.open(folder, os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)

    return _in_threads(put, made)


def swift(made: Bodies, endpoint_url: str, region: str, key: str, secret: str) -> float:
    """An object each, with boto3's put_object."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=AT_ONCE),
    )
    bucket = f"bare-{secrets.token_hex(8)}"
    client.create_bucket(Bucket=bucket)
    return _in_threads(
        lambda body: client.put_object(Bucket=bucket, Key=secrets.token_hex(16), Body=body), made
    )


def postgresql(made: Bodies, dsn: str) -> float:
    """A row each, committed."""

    async def run() -> float:
        async with asyncpg.create_pool(dsn, min_size=AT_ONCE, max_size=AT_ONCE) as pool:
            await pool.execute(TABLE)
            waiting = iter(made)

            async def put_all() -> None:
                for body in waiting:
                    digest = hashlib.sha256(body[:16]).digest()
                    await pool.execute("INSERT INTO bare VALUES ($1, $2)", digest, body)

            started = time.perf_counter()
            await asyncio.gather(*(put_all() for _ in range(AT_ONCE)))
            return time.perf_counter() - started

    return asyncio.run(run())


def _in_threads(put: Callable[[bytes], object], made: Bodies) -> float:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        started = time.perf_counter()
        list(threads.map(put, made))
        return time.perf_counter() - started


KINDS: dict[str, Callable[..., float]] = {
    "PostgreSQL": postgresql,
    "directory": directory,
    "Swift": swift,
}


def main(kind: str, size: str, count: str) -> None:
    """Puts them, and prints the seconds."""
    where = json.load(sys.stdin)
    print(KINDS[kind](bodies(int(size), int(count)), **where))


if __name__ == "__main__":
    main(*sys.argv[1:])
