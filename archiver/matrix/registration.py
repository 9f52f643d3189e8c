"""`registration.yaml`: what the homeserver and we agree on.

https://spec.matrix.org/v1.16/application-service-api/#registration
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.config import read_yaml_mapping
from archiver.errors import ConfigError
from archiver.model import SERVER_NAME_PATTERN

# Not the bot itself: Synapse cannot /sync its sender, which encrypted rooms will need.
SENDER_LOCALPART = "_archiver"
BOT_LOCALPART = "archiver"

_USER_ID = re.compile(rf"@[a-z0-9._=/+-]+:{SERVER_NAME_PATTERN}")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Registration:
    """What we need of it. `bot` is a user id: the one user in our namespace."""

    id: str
    as_token: str
    hs_token: str
    bot: str
    sender: str

    @property
    def bot_localpart(self) -> str:
        """The bot's name before the colon."""
        return self.bot[1:].partition(":")[0]


def new_registration(url: str, server_name: str) -> dict[str, Any]:
    """A registration with fresh tokens, as the homeserver reads it.

    A rooms namespace brings every event of every room, without the power to act as their users
    that a namespace of all users would bring.
    """
    return {
        "id": "matrix-media-archiver",
        "url": url,
        "as_token": secrets.token_urlsafe(32),
        "hs_token": secrets.token_urlsafe(32),
        "sender_localpart": SENDER_LOCALPART,
        "rate_limited": False,
        "namespaces": {
            "rooms": [{"exclusive": False, "regex": "!.*"}],
            "users": [{"exclusive": True, "regex": f"@{BOT_LOCALPART}:{re.escape(server_name)}"}],
            "aliases": [],
        },
    }


def load_registration(path: Path, server_name: str) -> Registration:
    """Reads and checks it. Raises ConfigError with a sentence for what would not work."""
    values = read_yaml_mapping(path, "the registration")
    registration = Registration(
        _text(path, values, "id"),
        _text(path, values, "as_token"),
        _text(path, values, "hs_token"),
        bot=_bot(path, values, server_name),
        sender=f"@{_text(path, values, 'sender_localpart')}:{server_name}",
    )
    if not _namespace(values, "rooms"):
        raise ConfigError(
            f"{path}: namespaces.rooms: is missing: without it the homeserver pushes no events; "
            'write one item, {exclusive: false, regex: "!.*"}'
        )
    if registration.bot == registration.sender:
        raise ConfigError(
            f"{path}: sender_localpart: must differ from the bot {registration.bot}, "
            f"because Synapse refuses /sync to its sender; {SENDER_LOCALPART} is a good one"
        )
    return registration


def _text(path: Path, values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path}: {key}: is missing or no text")
    return value


def _namespace(values: dict[str, Any], kind: str) -> list[Any]:
    namespaces = values.get("namespaces")
    found = namespaces.get(kind) if isinstance(namespaces, dict) else None
    return found if isinstance(found, list) else []


def _bot(path: Path, values: dict[str, Any], server_name: str) -> str:
    users = _namespace(values, "users")
    regex = users[0].get("regex") if len(users) == 1 and isinstance(users[0], dict) else None
    bot = _ESCAPED.sub(r"\1", regex) if isinstance(regex, str) else ""
    if not _USER_ID.fullmatch(bot) or bot.partition(":")[2] != server_name:
        raise ConfigError(
            f"{path}: namespaces.users: must hold our bot alone, like "
            f"@{BOT_LOCALPART}:{re.escape(server_name)}"
        )
    return bot
