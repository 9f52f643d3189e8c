"""What the archive is there for: what people post stays, whatever becomes of the homeserver."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import yaml

from demo.people import People
from tests.acceptance.conftest import new_folder, newcomers, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.encrypted import decrypt
from tests.support.matrix import MatrixError, MatrixUser
from tests.support.samples import png
from tests.support.synapse import Synapse

MIB = 1024 * 1024
HUGE = 256 * MIB


async def test_an_archive_is_added_to_a_homeserver_that_runs(
    services_folder: Path, synapse_python: Path, http: aiohttp.ClientSession
) -> None:
    """After `archiver init`, its lines in homeserver.yaml and a restart, only `archiver run` is
    missing; then an image that one person sends to another is served by the archive."""
    folder = new_folder(services_folder)
    synapse = Synapse(synapse_python, folder / "synapse")
    archive = Archiver(folder / "archive")
    await asyncio.to_thread(synapse.start)
    try:
        lines = yaml.safe_load(await asyncio.to_thread(archive.init))
        homeserver_yaml = folder / "synapse" / "homeserver.yaml"
        settings = json.loads(homeserver_yaml.read_text("utf-8"))
        homeserver_yaml.write_text(json.dumps({**settings, **lines}), "utf-8")
        await asyncio.to_thread(synapse.restart)
        archive.configure(synapse.url)
        doctor = ("doctor", "--json", "-c", str(archive.config))
        findings = json.loads((await asyncio.to_thread(archive.attempt, *doctor)).stdout)
        wrong = [finding["check"] for finding in findings if not finding["ok"]]
        assert wrong == ["push path"]
        reader = await started(archive, http)
        people = await newcomers(synapse, http)
        picture = png(640, 480, (200, 60, 60))
        mxc = await people.alice.upload(picture)
        posted = time.monotonic()
        await people.alice.send_image(people.direct, mxc)
        await reader.until("ready", mxc)
        assert await reader.download(mxc) == picture
        print(f"served {time.monotonic() - posted:.2f} s after it was posted")  # noqa: T201  # a figure for people
        described = await reader.state(mxc)
        assert described["references"][0]["room_id"] == people.direct
        assert described["references"][0]["sender"] == people.alice.user_id
    finally:
        await asyncio.to_thread(archive.stop)
        await asyncio.to_thread(synapse.stop)


async def test_all_that_was_posted_outlives_the_homeservers_copy(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Media of every kind, deleted from Synapse, is served byte by byte; what is encrypted opens
    with its key."""
    reader = await started(archive, http)
    await people.post()
    await reader.until("ready", *(posted.mxc for posted in people.posted))
    for posted in people.posted:
        await people.admin.delete_media(posted.mxc)
    for posted in people.posted:
        with pytest.raises(MatrixError) as refused:
            await people.alice.download(posted.mxc)
        assert refused.value.status == 404
        data = await reader.download(posted.mxc)
        assert data == posted.data, posted.what
        if posted.file is not None:
            assert decrypt(data, posted.file).startswith(b"\x89PNG")


async def test_polls_are_recorded_and_talk_is_not(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """The archive keeps polls and their votes word by word, and nothing of an ordinary message."""
    reader = await started(archive, http)
    question = {"org.matrix.msc1767.text": "Tea?"}
    start = {"org.matrix.msc3381.poll.start": {"question": question, "answers": []}}
    poll = await people.alice.send(people.room, "org.matrix.msc3381.poll.start", start)
    relation = {"rel_type": "m.reference", "event_id": poll}
    vote = await people.bob.send(
        people.room,
        "org.matrix.msc3381.poll.response",
        {"org.matrix.msc3381.poll.response": {"answers": ["yes"]}, "m.relates_to": relation},
    )
    talk = await people.bob.send(
        people.room, "m.room.message", {"msgtype": "m.text", "body": "just between us"}
    )
    await _post_image(people.bob, people.room, reader)  # the homeserver pushes in order
    conn = await asyncpg.connect(archive.dsn)
    try:
        rows = await conn.fetch(
            "SELECT event_id, content FROM event WHERE event_id = ANY($1)", [poll, vote, talk]
        )
        kept = {row["event_id"]: json.loads(row["content"]) for row in rows}
        assert kept.keys() == {poll, vote}
        assert kept[poll] == start
        everything = await conn.fetchval(
            "SELECT count(*) FROM event WHERE content::text LIKE '%just between us%'"
        )
        assert everything == 0
    finally:
        await conn.close()


async def test_what_is_posted_while_the_archiver_is_dead_arrives(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Three hundred images that are posted after a kill -9 are all there after the next start."""
    await started(archive, http)
    await asyncio.to_thread(archive.kill)
    posted: dict[str, bytes] = {}

    async def post(numbers: range) -> None:
        for number in numbers:
            picture = png(32, 32, (number % 256, number // 256, 7)) + secrets.token_bytes(8)
            mxc = await people.alice.upload(picture)
            await people.alice.send_image(people.room, mxc)
            posted[mxc] = picture

    await asyncio.gather(*(post(range(first, 300, 8)) for first in range(8)))
    reader = await started(archive, http)
    await reader.until("ready", *posted)
    for mxc, picture in posted.items():
        assert await reader.download(mxc) == picture


async def test_strangers_get_nothing(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Without a token and with a wrong one the answer is 401, on every route but /healthz."""
    reader = await started(archive, http)
    mxc = await _post_image(people.alice, people.room, reader)
    name = mxc.removeprefix("mxc://")
    paths = (
        f"/_matrix/client/v1/media/download/{name}",
        f"/api/media/download/{name}",
        f"/api/v1/media/{name}/content",
        f"/api/v1/media/{name}",
        "/api/v1/stats",
        "/readyz",
        "/metrics",
    )
    for path in paths:
        async with http.get(archive.url + path) as answer:
            assert (answer.status, await _errcode(answer)) == (401, "M_MISSING_TOKEN"), path
        headers = {"Authorization": "Bearer mma_wrong"}
        async with http.get(archive.url + path, headers=headers) as answer:
            assert (answer.status, await _errcode(answer)) == (401, "M_UNKNOWN_TOKEN"), path
    async with http.get(f"{archive.url}/healthz") as answer:
        assert answer.status == 200
    assert await archive.push(http, b'{"events":[]}', "known") == 200
    url = f"http://127.0.0.1:{archive.push_port}/_matrix/app/v1/transactions/stranger"
    async with http.put(url, data=b'{"events":[]}') as answer:
        assert (answer.status, await _errcode(answer)) == (403, "M_FORBIDDEN")


async def test_a_name_that_is_a_path_is_refused(
    archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """A media id that leads elsewhere is answered with 400, and never looked for."""
    reader = await started(archive, http)
    for name in ("archive.test/..%2F..%2Fetc%2Fpasswd", "..%2F../x", "archive.test/a%00b"):
        async with reader.get(name) as answer:
            assert (answer.status, await _errcode(answer)) == (400, "M_INVALID_PARAM"), name


async def test_a_part_of_a_huge_file(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """A range in the middle of 256 MiB comes as 206 and holds those very bytes."""
    reader = await started(archive, http)
    block = secrets.token_bytes(MIB - 1)  # so that no two places look alike at a MiB's distance
    data = (block * (HUGE // len(block) + 1))[:HUGE]
    mxc = await people.bob.upload(data, "application/octet-stream", "huge.bin")
    await people.bob.send_image(people.room, mxc)
    await reader.until("ready", mxc)
    start, stop = HUGE // 2 - 5, HUGE // 2 + 3 * MIB
    async with reader.get(mxc, Range=f"bytes={start}-{stop - 1}") as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{HUGE}"
        assert await answer.read() == data[start:stop]
    async with reader.get(mxc, Range=f"bytes={HUGE}-") as answer:
        assert answer.status == 416
    assert (await reader.state(mxc))["blob"]["place"] == "object"


@pytest.mark.parametrize("content_type", ["image/svg+xml", "text/html"])
async def test_what_a_browser_could_run_is_an_attachment(
    archive: Archiver, people: People, http: aiohttp.ClientSession, content_type: str
) -> None:
    """SVG and HTML are never shown as a page, even if nobody looks at the sandbox."""
    reader = await started(archive, http)
    page = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    mxc = await people.bob.upload(page, content_type, "page")
    await people.bob.send_image(people.room, mxc)
    await reader.until("ready", mxc)
    async with reader.get(mxc) as answer:
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert await answer.read() == page


async def test_media_that_is_gone_for_a_moment_is_tried_again(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """A 404 is not final: the media waits with the reason, and is archived once it is back."""
    reader = await started(archive, http)
    picture = png(16, 16, (1, 2, 3))
    mxc = await people.alice.upload(picture)
    await people.admin.quarantine_media(mxc)
    await people.alice.send_image(people.room, mxc)

    async def refused() -> bool:
        return "404 M_NOT_FOUND" in ((await reader.state(mxc)).get("reason") or "")

    await eventually("the archive says why it waits", refused)
    async with reader.get(mxc) as answer:
        assert (answer.status, await _errcode(answer)) == (504, "M_NOT_YET_UPLOADED")
    name = mxc.removeprefix("mxc://")
    await people.admin.call("POST", f"/_synapse/admin/v1/media/unquarantine/{name}", json={})
    await reader.until("ready", mxc)
    assert await reader.download(mxc) == picture


async def _post_image(user: MatrixUser, room: str, reader: Reader) -> str:
    mxc = await user.upload(png(8, 8, (9, 9, 9)))
    await user.send_image(room, mxc)
    await reader.until("ready", mxc)
    return mxc


async def _errcode(answer: aiohttp.ClientResponse) -> str:
    return str((await answer.json())["errcode"])
