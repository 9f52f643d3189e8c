"""`quarantine`: who hears of it."""

from __future__ import annotations

from archiver.config.section import Section


class Quarantine(Section):
    tell_homeserver: bool = False
