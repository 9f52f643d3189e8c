"""What an S3 server gives without us: aiohttp reads presigned URLs again and again.

    python -m bench.bare_read

takes its order as JSON on standard input, and prints how many bytes came in how many seconds. They
are thrown away.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import aiohttp
import boto3
import uvloop
from botocore.config import Config
from yarl import URL

TIMEOUT = aiohttp.ClientTimeout(total=None)
BUFFER = 256 * 1024


def presigned(s3: dict[str, Any]) -> list[str]:
    """A URL for each object below `prefix`; `s3` is `storage.s3` of config.yaml."""
    client = boto3.client(
        "s3",
        endpoint_url=s3["endpoint_url"],
        region_name=s3["region"],
        aws_access_key_id=s3["access_key_id"],
        aws_secret_access_key=s3["secret_access_key"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    bucket = "media-archive"
    found = client.list_objects_v2(Bucket=bucket, Prefix=s3["prefix"])["Contents"]
    where = ({"Bucket": bucket, "Key": one["Key"]} for one in found)
    return [client.generate_presigned_url("get_object", Params=one) for one in where]


async def read(urls: Sequence[str], connections: int, seconds: float) -> dict[str, float]:
    """As many at a time as there are connections."""
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(
        connector=connector, timeout=TIMEOUT, read_bufsize=BUFFER
    ) as session:

        async def some(turns: Iterator[str]) -> int:
            received = 0
            for url in turns:
                async with session.get(URL(url, encoded=True)) as response:
                    assert response.status == 200, await response.text()
                    async for piece in response.content.iter_any():
                        received += len(piece)
            return received

        started = time.perf_counter()
        turns = _until(started + seconds, urls)
        received = await asyncio.gather(*(some(turns) for _ in range(connections)))
        return {"bytes": sum(received), "seconds": time.perf_counter() - started}


def _until(deadline: float, urls: Sequence[str]) -> Iterator[str]:
    for url in cycle(urls):
        if time.perf_counter() >= deadline:
            return
        yield url


if __name__ == "__main__":
    print(json.dumps(uvloop.run(read(**json.load(sys.stdin)))))
