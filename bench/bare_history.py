"""What the archive's reading of old messages is held against: a loop that only reads them.

    python -m bench.bare_history

takes its order as JSON on standard input, and prints how many events it read in how many seconds.
Each page is parsed, because the token of the next one is in it, and thrown away.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import aiohttp
import orjson
import uvloop

TIMEOUT = aiohttp.ClientTimeout(total=None)


async def read(
    url: str, token: str, bot: str, rooms: Sequence[str], limit: int, at_once: int
) -> dict[str, float]:
    """Every room from its newest event to its first one, `at_once` of them at a time."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=TIMEOUT) as session:

        async def some(mine: Iterator[str]) -> int:
            count = 0
            for room in mine:
                path = f"{url}/_synapse/admin/v1/rooms/{quote(room, safe='')}/messages"
                query = {"dir": "b", "limit": str(limit), "user_id": bot}
                while True:
                    async with session.get(path, params=query) as response:
                        assert response.status == 200, await response.text()
                        page = orjson.loads(await response.read())
                    count += len(page["chunk"])
                    if page.get("end") is None:
                        break
                    query["from"] = page["end"]
            return count

        started = time.perf_counter()
        source = iter(rooms)
        counts = await asyncio.gather(*(some(source) for _ in range(at_once)))
        return {"events": sum(counts), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(read(**json.load(sys.stdin)))))
