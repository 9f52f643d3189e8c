"""What the bot tells by itself, as the configuration wants it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp

from archiver.config import Config
from archiver.control.asked import Means
from archiver.control.notices import Notices
from archiver.control.watching.conditions import Surroundings
from archiver.control.watching.disks import spaces
from archiver.matrix.answering import answers
from archiver.scan.opening import scanner


def configured(
    means: Means, session: aiohttp.ClientSession, room: Callable[[], str | None]
) -> Notices:
    """`room` is the control room's id, once it is known."""
    bot, disks = means.config.bot, partial(spaces, written_to(means.config))
    homeserver = partial(answers, session, means.config.homeserver.url)
    looks = scanner(means.config.scan)
    version = looks.version if looks else None
    around = Surroundings(homeserver, means.store.check_objects, disks, version)
    return Notices(means.pool, means.speech, room, around, bot.notify, bot.prefix)


def written_to(config: Config) -> list[Path]:
    """The folders of ours that grow, on this machine."""
    paths = [config.storage.spool]
    if config.database.url == "embedded":
        paths.append(config.database.data_dir)
    if config.storage.objects == "filesystem":
        paths.append(config.storage.filesystem.path)
    return paths
