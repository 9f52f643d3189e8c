"""`config` and `version`: what this archive is, and how it is set up."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from archiver import __version__
from archiver.catalogue import health
from archiver.config import Address
from archiver.control.asked import Asked
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import plural
from archiver.errors import ArchiverError
from archiver.units import format_size, parse_size

HIDDEN = "***"

_SECRET = re.compile(r"secret|password|token$")
# Whatever else is written as a URL is hidden as a whole: part of a password could be elsewhere.
_URL = re.compile(
    r"(?P<scheme>\w+://)(?:(?P<user>[^:@/?#]*)(?P<password>:[^@/?#]*)?@)?"
    r"(?P<place>[^@/?#]*(?:/[^@?#]*)?)(?P<rest>[?#][^@]*)?"
)
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class Setting(NamedTuple):
    """A key with its value as it may be shown."""

    key: str
    value: str
    is_default: bool


@command("version")
async def version(asked: Asked) -> Reply:
    """Tell the versions of the archiver, Python, PostgreSQL, the schema and the homeserver."""
    async with asked.means.pool.acquire() as conn:
        database = await health.versions(conn)
    try:
        homeserver = await asked.means.history.server_version() or "does not tell"
    except ArchiverError as error:
        homeserver = str(error)
    rows = (
        ("Matrix Media Archiver", __version__),
        ("Python", platform.python_version()),
        ("PostgreSQL", database.postgresql),
        ("schema", database.migration),
        ("homeserver", homeserver),
    )
    return said(Table(("", ""), rows), data=dict(rows))


@command("config")
async def config(asked: Asked) -> Reply:
    """Show every key of the configuration with the value in effect.

    What differs from the default is marked with ✏️. Secrets and passwords are not shown.
    """
    found = list(_settings(asked.means.config))
    changed = sum(not setting.is_default for setting in found)
    rows = tuple((f"{'' if s.is_default else '✏️ '}{s.key}", s.value) for s in found)
    summary = f"{plural(changed, 'key')} of {len(found):,} differ from the default (✏️):"
    data = {s.key: {"value": s.value, "default": s.is_default} for s in found}
    return said(summary, Table(("", ""), rows), data=data)


def _settings(section: BaseModel, prefix: str = "") -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), prefix + (field.alias or name)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{key}.")
        else:
            yield Setting(key, _shown(key, value, field), _is_default(value, field.default))


def _shown(key: str, value: Any, field: FieldInfo) -> str:
    if value is None:
        return "null"
    if _SECRET.search(key):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, Address):
        return f"{value.host}:{value.port}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, int):
        return format_size(value) if _is_size(field) else str(value)
    return _url(str(value)) if "://" in str(value) else str(value) or "(empty)"


def _url(text: str) -> str:
    """Without a password, and without parameters, which may hold one."""
    match = _URL.fullmatch(text)
    if match is None:
        return HIDDEN
    password = f":{HIDDEN}" if match["password"] else ""
    user = "" if match["user"] is None else f"{match['user']}{password}@"
    rest = f"{match['rest'][0]}{HIDDEN}" if match["rest"] else ""
    return f"{match['scheme']}{user}{match['place']}{rest}"


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    size, unit = next(((s, u) for s, u in _UNITS if seconds and seconds % s == 0), (1, "s"))
    return f"{seconds / size:g} {unit}"


def _is_default(value: Any, default: Any) -> bool:
    """A relative path starts at the folder of the file, which is not known here any more."""
    if isinstance(default, Path) and isinstance(value, Path):
        return value.parts[-len(default.parts) :] == default.parts
    return bool(value == default)


def _is_size(field: FieldInfo) -> bool:
    """Whether it is written with a unit, also as one of several types that it may have."""
    return any(
        isinstance(part, BeforeValidator) and part.func is parse_size
        for part in (*field.metadata, *_parts(field.annotation))
    )


def _parts(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _parts(part)
