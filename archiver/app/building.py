"""What several parts and commands stand on, as the configuration has it."""

from __future__ import annotations

from archiver.base import Base
from archiver.capture.policy import CapturePolicy
from archiver.config import Config
from archiver.control.asked import Means
from archiver.fetch.archive import Parts
from archiver.fetch.building import configured as fetching
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech


def capture_policy(config: Config, registration: Registration) -> CapturePolicy:
    """What the configuration leaves out, and what our own bot says."""
    rooms, remote_media = config.capture.rooms, config.capture.remote_media
    only, excluded = frozenset(rooms.only), frozenset(rooms.except_)
    server_name, bot = config.homeserver.server_name, registration.bot
    prefix = config.bot.prefix
    return CapturePolicy(server_name, only, excluded, remote_media, bot, prefix)


def history(base: Base, registration: Registration) -> History:
    """The homeserver's rooms as the bot reads them."""
    url = base.config.homeserver.url
    return History(base.session, url, registration.as_token, registration.bot)


def means(base: Base, registration: Registration) -> Means:
    """What commands work with."""
    speech = Speech(base.session, base.config.homeserver.url, registration)
    reader, policy = history(base, registration), capture_policy(base.config, registration)
    return Means(base.config, base.pool, base.store, reader, speech, policy)


def fetching_parts(base: Base, registration: Registration) -> Parts:
    """For the worker, and for what is asked for: neither waits for the other's downloads."""
    return fetching(base.config, registration, base.pool, base.session, base.store)
