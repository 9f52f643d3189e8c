"""`archiver doctor`: is everything as it must be, and if not, what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import aiohttp
import click
import orjson
from mautrix.errors import MUnknownToken

from archiver.base import http_session, open_database
from archiver.cli.common import with_config
from archiver.cli.objects import look_at_former, look_at_objects
from archiver.config import Config
from archiver.db.migrate import is_empty, pending
from archiver.db.pool import open_pool
from archiver.errors import ArchiverError, OperationError
from archiver.matrix.bot import AWAY, Bot
from archiver.matrix.registration import Registration, load_registration
from archiver.matrix.speech import UNHEARD, Speech
from archiver.scan.opening import scanner
from archiver.store.opening import former_store
from archiver.units import format_size

LOW_DISK = 1024**3
AUTHENTICATED_MEDIA = frozenset({"v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17"})


class Problem(OperationError):
    """What is wrong, and what to do about it."""

    def __init__(self, said: str, advice: str) -> None:
        super().__init__(said)
        self.advice = advice


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. `advice` says what to do when it is not `ok`."""

    check: str
    ok: bool
    said: str
    advice: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def doctor(config: Config, as_json: bool) -> None:
    """Check database, store, homeserver and registration, and say what to do."""
    findings = await examine(config)
    if as_json:
        click.echo(orjson.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.check}: {finding.said}")
            if finding.advice:
                click.echo(f"     -> {finding.advice}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


async def examine(config: Config) -> list[Finding]:
    """Every check's finding, in an order in which they are worth mending."""
    async with http_session() as session:
        findings = [
            await _find("database", lambda: _database(config)),
            await _find("object store", lambda: look_at_objects(config.storage)),
            await _find("spool", lambda: _spool(config)),
        ]
        if former := former_store(config.storage):
            findings.append(await _find("former store", lambda: look_at_former(former)))
        if looks := scanner(config.scan):
            findings.append(await _find("scanner", looks.version))
        registration = load_registration(
            config.appservice.registration, config.homeserver.server_name
        )
        homeserver = _Homeserver(config, registration, session)
        findings.append(await _find("homeserver", homeserver.answers))
        if findings[-1].ok:
            findings.append(await _find("registration", homeserver.knows_us))
        if findings[-1].ok:
            findings.append(await _find("push path", homeserver.reaches_us))
            findings.append(await _find("administration", homeserver.trusts_us))
            if config.bot.control_room:
                speech = Speech(session, config.homeserver.url, registration)
                findings.append(await _find("control room", lambda: _control_room(config, speech)))
    return findings


async def _find(check: str, look: Callable[[], Awaitable[str]]) -> Finding:
    try:
        return Finding(check, True, await look())
    except Problem as problem:
        return Finding(check, False, str(problem), problem.advice)
    except ArchiverError as error:
        return Finding(check, False, str(error))


async def _database(config: Config) -> str:
    async with open_database(config) as dsn, open_pool(dsn, 1) as pool, pool.acquire() as conn:
        version = await conn.fetchval("SHOW server_version")
        major = await conn.fetchval("SELECT current_setting('server_version_num')::int / 10000")
        if major < 14:
            raise Problem(f"PostgreSQL {version} is too old", "use PostgreSQL 14 or later")
        waiting = await pending(conn)
        if waiting and (config.database.url == "embedded" or await is_empty(conn)):
            return f"PostgreSQL {version} answers, and `archiver run` brings it up to date"
        if waiting:
            raise Problem(
                f"PostgreSQL {version} answers, but lacks {len(waiting)} migration(s)",
                "make a backup, then run `archiver migrate`",
            )
    return f"PostgreSQL {version} answers and is up to date"


async def _spool(config: Config) -> str:
    spool = config.storage.spool
    try:
        spool.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(spool).free
    except OSError as error:
        raise Problem(
            f"{spool} cannot be used ({error.strerror})", "choose another folder in storage.spool"
        ) from None
    if free < LOW_DISK:
        raise Problem(f"only {format_size(free)} are free in {spool}", "free disk space")
    return f"{format_size(free)} free in {spool}"


async def _control_room(config: Config, speech: Speech) -> str:
    room, admins = str(config.bot.control_room), config.bot.admins
    try:
        room_id = await speech.room_of(room) if room.startswith("#") else room
        if room_id is None:
            raise Problem(f"{room} names no room", "make it, or correct bot.control_room")
        if room_id not in await speech.joined_rooms():
            who = " or ".join(admins) or "one of bot.admins (name one there and restart)"
            raise Problem(
                f"the bot is not in {room}",
                f"while `archiver run` runs, let {who} invite {speech.user_id} there, again if "
                "that was done before",
            )
        if await speech.is_encrypted(room_id):
            raise Problem(
                f"{room} is encrypted, so the bot cannot read what is said in it",
                "make a room without encryption, and put it into bot.control_room",
            )
    except UNHEARD as error:
        raise Problem(
            f"the homeserver does not tell about {room} ({error})",
            "check that bot.control_room is a room of this homeserver",
        ) from None
    if not admins and config.bot.power_level is None:
        raise Problem(f"nobody may command in {room}", "name your user id in bot.admins")
    return f"the bot is in {room}, and hears {config.bot.prefix}"


class _Homeserver:
    """The homeserver as our bot sees it."""

    def __init__(
        self, config: Config, registration: Registration, session: aiohttp.ClientSession
    ) -> None:
        self._config = config
        self._registration = registration
        self._bot = Bot(session, config.homeserver.url, registration)

    async def answers(self) -> str:
        url = self._config.homeserver.url
        try:
            versions = await self._bot.versions()
        except AWAY as error:
            raise Problem(
                f"{url} does not answer as a homeserver ({error})",
                "check homeserver.url, and that the homeserver runs",
            ) from None
        if not AUTHENTICATED_MEDIA.intersection(versions):
            return f"{url} answers; it is older than authenticated media, which also works"
        return f"{url} answers"

    async def knows_us(self) -> str:
        path = self._config.appservice.registration
        try:
            await self._bot.register()
            user_id = await self._bot.whoami()
        except MUnknownToken:
            raise Problem(
                "the homeserver does not know the as_token",
                f"add {path} to app_service_config_files in homeserver.yaml and restart it",
            ) from None
        except AWAY as error:
            raise Problem(
                f"the homeserver refuses {self._registration.bot} ({error})",
                f"it must read the very same registration as {path}; restart it after a change",
            ) from None
        if user_id != self._registration.bot:
            raise Problem(
                f"the homeserver takes us for {user_id}",
                "homeserver.server_name must be the homeserver's own server_name",
            )
        return f"the homeserver knows {user_id}"

    async def reaches_us(self) -> str:
        listen = self._config.appservice.listen
        try:
            milliseconds = await self._bot.ping()
        except AWAY as error:
            raise Problem(
                f"the homeserver's ping does not reach us ({error})",
                f"start `archiver run`; url: in the registration must lead to {listen.host}:"
                f"{listen.port} (appservice.listen), also through containers and firewalls",
            ) from None
        return f"the homeserver reaches us in {milliseconds} ms"

    async def trusts_us(self) -> str:
        try:
            if await self._bot.is_admin():
                return "the bot is an administrator: old messages of every room can be read"
        except AWAY as error:
            if self._config.quarantine.tell_homeserver:
                raise Problem(
                    f"this homeserver has no admin API that we know ({error}), so it cannot hide"
                    " what is quarantined",
                    "let us reach /_synapse/admin, or set quarantine.tell_homeserver to false",
                ) from None
            return f"this homeserver has no admin API that we know ({error})"
        if self._config.quarantine.tell_homeserver:
            raise Problem(
                "the bot is no administrator, so the homeserver does not hide what is quarantined",
                "an administrator may PUT /_synapse/admin/v1/users/"
                f'{self._registration.bot}/admin {{"admin": true}}; or set '
                "quarantine.tell_homeserver to false",
            )
        return (
            "the bot is no administrator, and need not be. To read old messages of rooms it is "
            "not in, an administrator may PUT /_synapse/admin/v1/users/"
            f'{self._registration.bot}/admin {{"admin": true}}'
        )
