"""Every section and key of `config.yaml`, with its default and what it must be."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict

from archiver.config import kinds
from archiver.config.quarantine import Quarantine
from archiver.config.retention import Retention
from archiver.config.scan import Scan
from archiver.config.section import Section, user_id
from archiver.model import SERVER_NAME_PATTERN
from archiver.units import parse_duration, parse_size

MIB = 1024 * 1024


class Address(NamedTuple):
    """Where a server of ours listens."""

    host: str
    port: int


def _address(value: object) -> Address:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\s]+):(\d{1,5})", str(value).strip())
    if match is None or int(match[2]) > 65535:
        raise ValueError("is no address: write host:port, like 127.0.0.1:29340")
    return Address(match[1].strip("[]"), int(match[2]))


def _http_url(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/]+\S*", value):
        raise ValueError("is no URL: it starts with http:// or https://")
    return value.rstrip("/")


def _database_url(value: object) -> str:
    if value != "embedded" and not re.match(r"postgres(ql)?://", str(value)):
        raise ValueError("is neither embedded nor a URL like postgresql://user:password@host/name")
    return str(value)


def _server_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(SERVER_NAME_PATTERN, value):
        raise ValueError(
            "is no server name: the part of user ids after the colon, like example.com"
        )
    return value


def _inline_limit(size: int) -> int:
    if size > 256 * MIB:
        raise ValueError("is more than 256 MiB: PostgreSQL keeps such values in memory as a whole")
    return size


def _between(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(f"is outside {low} to {high}")
    return value


def _pause(span: timedelta) -> timedelta:
    if span < timedelta(seconds=1):
        raise ValueError("is shorter than a second; null switches it off")
    return span


def _rate(size: int) -> int:
    if size < 1024:
        raise ValueError("is less than 1 KiB a second; null takes the limit away")
    return size


def _verify_rate(size: int) -> int:
    if size < 1024:
        raise ValueError("is less than 1 KiB a second; null switches it off")
    return size


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value))
    except ValueError:
        raise ValueError("is no address and no network, like 10.0.0.0/8 or ::1") from None


def _signed_for(span: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= span <= timedelta(days=366):
        raise ValueError("is outside a second to a year")
    return span


def _lease(span: timedelta) -> timedelta:
    if span < timedelta(seconds=1):
        raise ValueError("is shorter than a second")
    return span


def _room(value: str) -> str:
    if not re.fullmatch(r"![^\s]+|#[^\s:]+:\S+", value):
        raise ValueError("is no room: its id starts with !, an alias of it with #")
    return value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"\S{1,32}", value):
        raise ValueError("is no prefix: one word of up to 32 characters, like !archive")
    return value


def _confirm_within(span: timedelta) -> timedelta:
    if not timedelta(seconds=10) <= span <= timedelta(days=1):
        raise ValueError("is outside ten seconds to a day")
    return span


Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
HttpUrl = Annotated[str, BeforeValidator(_http_url)]
Listen = Annotated[Address, BeforeValidator(_address)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Limit = Annotated[int, AfterValidator(lambda n: _between(n, 1, 1_000_000))]


class Homeserver(Section):
    url: HttpUrl
    server_name: Annotated[str, BeforeValidator(_server_name)]


class Appservice(Section):
    registration: Path = Path("registration.yaml")
    listen: Listen = Address("127.0.0.1", 29340)


class Database(Section):
    url: Annotated[str, BeforeValidator(_database_url)] = "embedded"
    data_dir: Path = Path("data/postgres")


class FilesystemStorage(Section):
    path: Path = Path("data/objects")


class S3Storage(Section):
    endpoint_url: HttpUrl | None = None
    region: str = "us-east-1"
    bucket: str = "media-archive"
    prefix: str = ""
    access_key_id: str | None = None
    secret_access_key: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"


class Storage(Section):
    inline_limit: Annotated[Size, AfterValidator(_inline_limit)] = 5 * MIB
    objects: Literal["filesystem", "s3"] = "filesystem"
    move_from: Literal["filesystem", "s3"] | None = None
    filesystem: FilesystemStorage = FilesystemStorage()
    s3: S3Storage = S3Storage()
    spool: Path = Path("data/spool")


class Rooms(Section):
    only: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class Capture(Section):
    rooms: Rooms = Rooms()
    remote_media: bool = True
    max_size: Size | None = None
    on_redaction: Literal["keep", "hide", "delete"] = "keep"
    delete_after: Duration = timedelta(days=7)


class History(Section):
    reconcile_every: Annotated[Duration, AfterValidator(_pause)] | None = timedelta(minutes=10)
    remote_rate: Annotated[Size, AfterValidator(_rate)] | None = 64 * 1024


class Worker(Section):
    concurrency: Annotated[int, AfterValidator(lambda n: _between(n, 1, 256))] = 8
    lease: Annotated[Duration, AfterValidator(_lease)] = timedelta(seconds=30)
    stop_within: Duration = timedelta(seconds=20)
    verify_rate: Annotated[Size, AfterValidator(_verify_rate)] | None = MIB
    verify_every: Annotated[Duration, AfterValidator(_lease)] = timedelta(days=30)


class Thumbnails(Section):
    helpers: Annotated[int, AfterValidator(lambda n: _between(n, 1, 64))] = 2
    background: bool = True


class Serve(Section):
    listen: Listen = Address("127.0.0.1", 29341)
    public_url: HttpUrl = "http://localhost:29341"
    matrix_tokens: Literal["nobody", "admins", "local_users"] = "admins"
    read_through: bool = True
    redirect_objects: bool = False
    hot_cache: Size = 64 * MIB
    signed_for_at_most: Annotated[Duration, AfterValidator(_signed_for)] = timedelta(days=7)
    rate_limit: Limit | None = 100
    rate_burst: Limit = 500
    failure_limit: Limit | None = 60
    trusted_proxies: tuple[Network, ...] = ()
    keep_reads: Duration | None = timedelta(days=90)
    processes: Annotated[int, AfterValidator(lambda n: _between(n, 1, 64))] = 1


class Bot(Section):
    control_room: Annotated[str, AfterValidator(_room)] | None = None
    prefix: Annotated[str, AfterValidator(_prefix)] = "!archive"
    admins: tuple[Annotated[str, AfterValidator(user_id)], ...] = ()
    power_level: int | None = None
    confirm_within: Annotated[Duration, AfterValidator(_confirm_within)] = timedelta(minutes=10)
    notify: tuple[kinds.Kind, ...] = kinds.EVERY


class Log(Section):
    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section):
    """The whole configuration. Paths in it are absolute."""

    homeserver: Homeserver
    appservice: Appservice = Appservice()
    database: Database = Database()
    storage: Storage = Storage()
    capture: Capture = Capture()
    retention: Retention = Retention()
    quarantine: Quarantine = Quarantine()
    history: History = History()
    worker: Worker = Worker()
    thumbnails: Thumbnails = Thumbnails()
    scan: Scan = Scan()
    serve: Serve = Serve()
    bot: Bot = Bot()
    log: Log = Log()
