"""The commands as an administrator uses them, most of them beside an archive that runs."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
import yaml

from demo.people import People
from tests.acceptance.conftest import Site, started
from tests.support.archiver import Archiver, eventually
from tests.support.process import free_port
from tests.support.samples import png


async def command(archive: Archiver, *words: str) -> subprocess.CompletedProcess[str]:
    """A command with the archive's configuration."""
    return await asyncio.to_thread(archive.attempt, *words, "-c", str(archive.config))


async def test_init_writes_two_private_files_and_overwrites_none(tmp_path: Path) -> None:
    """config.yaml and registration.yaml are their owner's alone; a second `init` refuses."""
    archive = Archiver(tmp_path / "new")
    assert str(archive.registration) in await asyncio.to_thread(archive.init)
    files = {path: path.read_bytes() for path in (archive.config, archive.registration)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        await asyncio.to_thread(archive.init)
    assert refused.value.returncode == 1
    assert "is there already" in refused.value.stderr
    assert {path: path.read_bytes() for path in files} == files


async def test_tokens_are_made_listed_and_revoked(
    archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """A new token opens the running archive, is shown this once, and is refused once revoked."""
    await started(archive, http)
    made = await command(archive, "token", "create", "panel", "--scope", "read")
    secret = made.stdout.strip()
    assert (made.returncode, secret[:4]) == (0, "mma_")

    async def opens() -> bool:
        headers = {"Authorization": f"Bearer {secret}"}
        async with http.get(f"{archive.url}/api/v1/stats", headers=headers) as answer:
            return answer.status == 200

    assert await opens()
    again = await command(archive, "token", "create", "panel", "--scope", "admin")
    assert (again.returncode, again.stdout) == (1, "")
    assert "panel" in again.stderr
    listed = await command(archive, "token", "list", "--json")
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["panel"]["scope"] == "read"
    assert rows["panel"]["revoked_at"] is None
    assert secret not in listed.stdout
    assert "panel" in (await command(archive, "token", "list")).stdout
    assert (await command(archive, "token", "revoke", "panel")).returncode == 0

    async def is_refused() -> bool:
        return not await opens()

    await eventually("the token is refused", is_refused, 5)
    unknown = await command(archive, "token", "revoke", "panel")
    assert unknown.returncode == 1
    assert "`token list`" in unknown.stderr


async def test_stats_count_what_is_kept(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """`archiver stats --json` says the same as the running archive's own route."""
    reader = await started(archive, http)
    mxc = await people.alice.upload(png(9, 9, (1, 1, 1)))
    await people.alice.send_image(people.room, mxc)
    await reader.until("ready", mxc)

    async def say_the_same() -> bool:  # once the small pictures are made, and rooms compared
        printed = json.loads((await command(archive, "stats", "--json")).stdout)
        return bool(printed == await reader.stats() | {"counted_at": printed["counted_at"]})

    await eventually("both say the same", say_the_same)
    figures = await reader.stats()
    assert figures["media"]["ready"] >= 1
    assert figures["blobs"]["inline"]["bytes"] > 0
    assert "ready" in (await command(archive, "stats")).stdout


async def test_the_doctor_finds_nothing_wrong_with_a_running_archive(
    archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """Every check is ok, and the exit status 0."""
    await started(archive, http)
    done = await command(archive, "doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0, findings
    assert all(finding["ok"] for finding in findings)
    checks = ["database", "object store", "spool", "homeserver", "registration", "push path"]
    assert [finding["check"] for finding in findings][: len(checks)] == checks
    assert "BAD" not in (await command(archive, "doctor")).stdout


async def test_the_doctor_says_that_no_archive_runs(archive: Archiver) -> None:
    """Without `archiver run` the push path is what is wrong."""
    said = await _complaint(archive)
    assert said["check"] == "push path"
    assert "archiver run" in said["advice"]


async def test_the_doctor_says_that_the_token_is_unknown(site: Site, archive: Archiver) -> None:
    """A registration that the homeserver does not have is what is wrong."""
    other = archive.folder / "other.yaml"
    registration = yaml.safe_load(archive.registration.read_text("utf-8"))
    other.write_text(yaml.safe_dump({**registration, "as_token": "wrong"}), "utf-8")
    archive.configure(site.synapse.url, {"appservice": {"registration": "other.yaml"}})
    said = await _complaint(archive)
    assert said["check"] == "registration"
    assert "app_service_config_files" in said["advice"]


async def test_the_doctor_says_that_the_homeserver_is_away(archive: Archiver) -> None:
    """A homeserver that does not answer is what is wrong."""
    archive.configure(f"http://127.0.0.1:{free_port()}")
    said = await _complaint(archive)
    assert said["check"] == "homeserver"
    assert "homeserver.url" in said["advice"]


async def test_the_doctor_says_that_the_database_is_away(site: Site, archive: Archiver) -> None:
    """A database that does not answer is what is wrong, and the password is not told."""
    url = f"postgresql://archiver:secret-word@127.0.0.1:{free_port()}/archive"
    archive.configure(site.synapse.url, {"database": {"url": url}})
    done = await command(archive, "doctor")
    assert done.returncode == 1
    assert "BAD  database" in done.stdout
    assert "secret-word" not in done.stdout + done.stderr


async def test_the_doctor_looks_at_the_control_room(
    site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """It is there, one of bot.admins has asked the bot into it, and the bot can read it."""
    owner, server = people.admin, site.synapse.server_name

    async def found(room: str, **bot: Any) -> tuple[bool, str]:
        archive.configure(site.synapse.url, {"bot": {"control_room": room, **bot}})
        done = await command(archive, "doctor", "--json")
        (finding,) = (one for one in json.loads(done.stdout) if one["check"] == "control room")
        return finding["ok"], finding["said"] + finding["advice"]

    room = await owner.create_room(room_alias_name=owner.user_id[1:].partition(":")[0])
    alias = f"#{owner.user_id[1:]}"
    admins = [owner.user_id]
    archive.configure(site.synapse.url, {"bot": {"control_room": alias, "admins": admins}})
    await started(archive, http)
    bot = f"@archiver:{server}"
    well, advice = await found(f"#nowhere:{server}", admins=admins)
    assert (well, "names no room" in advice) == (False, True)
    well, advice = await found(alias, admins=admins)
    assert (well, f"let {owner.user_id} invite {bot}" in advice) == (False, True)
    path = f"/_matrix/client/v3/rooms/{quote(room)}/invite"
    await owner.call("POST", path, json={"user_id": bot})
    members = f"/_matrix/client/v3/rooms/{quote(room)}/joined_members"

    async def has_come() -> bool:
        return bot in (await owner.call("GET", members))["joined"]

    await eventually("the bot comes", has_come)
    said = f"the bot is in {alias}, and hears !archive"
    assert await found(alias, admins=admins) == (True, said)
    well, advice = await found(room, admins=[])
    assert (well, "bot.admins" in advice) == (False, True)
    await owner.send_state(room, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    well, advice = await found(room, admins=admins)
    assert (well, "without encryption" in advice) == (False, True)


async def test_an_old_database_is_migrated_on_command_only(
    empty_database_url: str, lone_archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """On a database in use that lacks migrations `run` ends with 1 and names the command, after
    which it runs."""
    conn = await asyncpg.connect(empty_database_url)
    await conn.execute("CREATE TABLE somebody_elses (id integer)")
    await conn.close()
    closed = f"http://127.0.0.1:{free_port()}"
    lone_archive.configure(closed, {"database": {"url": empty_database_url}})
    for words in (["run"], ["stats"]):
        refused = await command(lone_archive, *words)
        assert refused.returncode == 1
        assert "archiver migrate" in refused.stderr
    findings = json.loads((await command(lone_archive, "doctor", "--json")).stdout)
    assert "archiver migrate" in findings[0]["advice"]
    migrated = await command(lone_archive, "migrate")
    assert migrated.returncode == 0
    assert "0001_initial" in migrated.stdout
    assert (await (await started(lone_archive, http)).stats())["media"] == {}


async def test_a_second_archive_on_the_same_ports_is_refused(
    archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """It ends with 1 and names what to change; the first one goes on."""
    reader = await started(archive, http)
    second = await command(archive, "run")
    assert second.returncode == 1
    assert "listen" in second.stderr
    assert "Traceback" not in second.stderr
    assert "media" in await reader.stats()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"storage": {"inline_limit": "5 parsecs"}}, "storage.inline_limit"),
        ({"storage": {"inlinelimit": 5}}, "storage.inlinelimit"),
        ({"homeserver": {"url": "localhost"}}, "homeserver.url"),
        ({"database": {"url": "mysql://x"}}, "database.url"),
        ({"worker": {"concurrency": 0}}, "worker.concurrency"),
        ({"appservice": {"registration": "nowhere.yaml"}}, "registration"),
    ],
)
async def test_a_mistake_in_the_configuration_is_named(
    lone_archive: Archiver, change: Mapping[str, Any], key: str
) -> None:
    """The exit status is 2, and one plain line says which key is wrong."""
    lone_archive.configure("http://127.0.0.1:1", change)
    done = await command(lone_archive, "run")
    assert done.returncode == 2
    assert key in done.stderr
    assert done.stderr.startswith("archiver: ")
    assert "Traceback" not in done.stderr


async def _complaint(archive: Archiver) -> dict[str, Any]:
    """The one finding of the doctor that is not ok."""
    done = await command(archive, "doctor", "--json")
    assert done.returncode == 1
    (bad,) = (finding for finding in json.loads(done.stdout) if not finding["ok"])
    return dict(bad)
