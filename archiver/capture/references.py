"""Which media an event names, and in which role."""

from __future__ import annotations

from typing import Any, NamedTuple

from archiver.capture.roles import assign_roles
from archiver.capture.walk import Found, walk
from archiver.model import Reference


class Findings(NamedTuple):
    """The media an event names, and how many of its strings only pretend to name one.

    `references` holds a media once a role, the first finding wins. `malformed` counts the strings
    (keys too) that hold `mxc://` and no valid mxc.
    """

    references: list[Reference]
    malformed: int


def find_references(event: Any) -> Findings:
    """Every valid mxc anywhere in a raw event, each with the role Matrix gives to its place.

    `event` is any JSON value of any depth as parsed; nothing in it raises. What has no role of its
    own is `Role.OTHER`, so that nothing new in Matrix escapes the archive.
    """
    found = Found()
    if isinstance(event, dict):
        assign_roles(found, event)
    walk(found, event)
    return Findings(found.references, found.malformed)
