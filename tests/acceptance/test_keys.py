"""Keys and tokens over several processes: made and revoked by a command, known at once by all."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time

import aiohttp
import pytest

from demo.people import People
from tests.acceptance.conftest import started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.samples import png

FORMULA = (
    'printf "%s\\n%s\\n%s\\n%s" "$1" "$2" read "$3" |'
    ' openssl dgst -sha256 -hmac "$4" -binary | base64 -w0 | tr +/ -_ | tr -d ='
)


@pytest.fixture
def urls(archive: Archiver, second_url: str) -> list[str]:
    """Two serving processes of one archive."""
    return [archive.url, second_url]


async def command(archive: Archiver, *words: str) -> str:
    """What a command that worked printed."""
    done = await asyncio.to_thread(archive.attempt, *words, "-c", str(archive.config))
    assert done.returncode == 0, done.stderr
    return done.stdout


async def signature(path: str, expires: int, parameters: str, secret: str) -> str:
    """The documented formula, by other means than ours."""
    formula = ["sh", "-c", FORMULA, "sh", path, str(expires), parameters, secret]
    return await asyncio.to_thread(subprocess.check_output, formula, text=True)


async def test_a_panels_back_end_signs_by_the_formula(
    archive: Archiver, urls: list[str], people: People, http: aiohttp.ClientSession
) -> None:
    """With openssl alone; both processes serve what it signed, and neither does any more as soon
    as the key is revoked."""
    picture = png(16, 16, (80, 7, 170))
    mxc = await people.alice.upload(picture, filename="rose garden.png")
    await people.alice.send_image(people.room, mxc)
    await Reader(http, urls[0], archive.token).until("ready", mxc)
    made = json.loads(await command(archive, "key", "create", "panel", "--json"))
    path = f"/api/v1/media/{mxc.removeprefix('mxc://')}/content"
    expires = int(time.time()) + 600
    proof = await signature(path, expires, "for=@mod:panel.test", made["secret"])
    query = f"expires={expires}&scope=read&key={made['id']}&for=@mod:panel.test"
    signed = f"{path}?{query}&signature={proof}"

    async def status(url: str) -> int:
        async with http.get(url + signed) as answer:
            if answer.status == 200:
                assert await answer.read() == picture
            return answer.status

    assert [await status(url) for url in urls] == [200, 200]
    listed = await command(archive, "key", "list")
    assert "panel" in listed
    assert made["secret"] not in listed
    await command(archive, "key", "revoke", "panel")

    async def is_refused() -> bool:
        return [await status(url) for url in urls] == [403, 403]

    await eventually("both refuse it", is_refused, 5)
    again = await asyncio.to_thread(
        archive.attempt, "key", "revoke", "panel", "-c", str(archive.config)
    )
    assert again.returncode == 1
    assert "archiver key list" in again.stderr


async def test_a_key_is_shown_once(archive: Archiver) -> None:
    """Its id and its secret; the archive's own name is not to be had."""
    lines = (await command(archive, "key", "create", "backend", "--scope", "admin")).split()
    assert (lines[0], lines[2], lines[3][:4]) == ("key", "secret", "mmk_")
    [row] = [
        row
        for row in json.loads(await command(archive, "key", "list", "--json"))
        if row["name"] == "backend"
    ]
    assert (str(row["id"]), row["scope"], row["expires_at"]) == (lines[1], "admin", None)
    refused = await asyncio.to_thread(
        archive.attempt, "key", "create", "archive", "-c", str(archive.config)
    )
    assert refused.returncode == 1
    assert "choose another" in refused.stderr


async def test_a_token_ends_at_once_in_every_process(
    archive: Archiver, urls: list[str], http: aiohttp.ClientSession
) -> None:
    """Used at both, listed with its last use, and revoked by a third process."""
    secret = (await command(archive, "token", "create", "twice", "--scope", "read")).strip()
    headers = {"Authorization": f"Bearer {secret}"}

    async def statuses() -> list[int]:
        found = []
        for url in urls:
            async with http.get(f"{url}/api/v1/stats", headers=headers) as answer:
                found.append(answer.status)
        return found

    assert await statuses() == [200, 200]

    async def is_noted() -> bool:
        rows = json.loads(await command(archive, "token", "list", "--json"))
        [row] = [row for row in rows if row["name"] == "twice"]
        return row["last_used_at"] is not None

    await eventually("its use is noted", is_noted, 30)
    await command(archive, "token", "revoke", "twice")

    async def is_refused() -> bool:
        return await statuses() == [401, 401]

    await eventually("both refuse it", is_refused, 5)


async def test_the_limits_of_the_configuration_hold(
    archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """For a token, and for who has none: by the address that a trusted proxy tells."""
    archive.configure(
        "http://127.0.0.1:1",
        {
            "serve": {
                "rate_limit": 1,
                "rate_burst": 3,
                "failure_limit": 2,
                "trusted_proxies": ["127.0.0.1"],
            }
        },
    )
    await started(archive, http)
    token = await asyncio.to_thread(lambda: archive.token)

    async def statuses(number: int, **headers: str) -> list[int]:
        found = []
        for _ in range(number):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            async with http.get(f"{archive.url}/api/v1/stats", headers=named) as answer:
                found.append(answer.status)
        return found

    assert 429 in await statuses(20, Authorization=f"Bearer {token}")
    for address in ("203.0.113.1", "203.0.113.2"):
        assert await statuses(3, X_Forwarded_For=address) == [401, 401, 429]
