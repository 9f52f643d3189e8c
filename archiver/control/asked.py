"""Who asked for a command, from where, and what it may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archiver.control.reply import Reply

if TYPE_CHECKING:
    from archiver.capture.policy import CapturePolicy
    from archiver.config import Config
    from archiver.db.pool import Pool
    from archiver.matrix.history import History
    from archiver.matrix.speech import Speech
    from archiver.store.hybrid import HybridStore

SHELL = "shell"


@dataclass(frozen=True)
class Means:
    """What commands work with, built once a process."""

    config: Config
    pool: Pool
    store: HybridStore
    history: History
    speech: Speech
    policy: CapturePolicy


@dataclass(frozen=True)
class Asked:
    """One command that was given.

    `actor` is @user:server or shell:NAME, `place` a room's id or 'shell'. `progress` shows how far
    it is, in place of what it showed before. `tell_alone` tells it to nobody but who asked: what
    is secret. `pause` waits for so many seconds, and raises Cancelled when who asked has had
    enough.
    """

    means: Means
    actor: str
    place: str
    progress: Callable[[Reply], Awaitable[None]]
    tell_alone: Callable[[Reply], Awaitable[None]]
    pause: Callable[[float], Awaitable[None]]

    @property
    def on_shell(self) -> bool:
        """True on a terminal, where more can be shown and nothing has to be short."""
        return self.place == SHELL
