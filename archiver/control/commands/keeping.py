"""What is set aside, what goes for ever, and whether everything is still what it was."""

from __future__ import annotations

import click

from archiver.catalogue import erasure
from archiver.catalogue.erasure import Weight
from archiver.catalogue.targets import Target as Of
from archiver.control.arguments import ANY_TARGET, HIDEABLE, Target, settled
from archiver.control.asked import Asked
from archiver.control.commands import scanning
from archiver.control.commands.sweeping import sweep
from archiver.control.commands.verifying import Notice, verify
from archiver.control.definition import command
from archiver.control.reply import Reply, printable, said
from archiver.control.words import plural
from archiver.errors import ArchiverError, Cancelled, OperationError
from archiver.keep import quarantine as keep
from archiver.keep.erasure import Erased, Erasure
from archiver.keep.gentle import gently
from archiver.keep.quarantine import Done, Who
from archiver.units import format_size


@command("quarantine", changes=True, long=True)
@click.argument("target", type=HIDEABLE)
@click.argument("reason", nargs=-1)
@click.option(
    "--homeserver/--no-homeserver", default=None, help="Hide it on the homeserver, too, or not."
)
async def quarantine(
    asked: Asked, target: Target, reason: tuple[str, ...], homeserver: bool | None
) -> Reply:
    """Hide the media of TARGET from everybody but administrators, at once; nothing is lost.

    TARGET is a media (mxc://...), an event ($...), a user (@...) or a room (!..., or its alias):
    all that its events have named so far, wherever else it was posted too. What is not archived
    yet is not fetched. Or bytes (sha256:...): all media that have them, and all that will come
    with them. `release` undoes it.

    With quarantine.tell_homeserver in the configuration, or --homeserver, the homeserver hides it
    from its users as well: it is told as soon as it answers.
    """
    of, who = await _of(asked, target), Who(asked.actor, asked.place)
    why = printable(" ".join(reason))
    key = asked.means.config.quarantine.tell_homeserver
    tell, done, notice = key if homeserver is None else homeserver, Done(), Notice(asked)
    async for done in gently(keep.quarantine(asked.means.pool, of, why, who, tell=tell)):
        await notice.show(f"In quarantine so far: {_media(*done[:2])}.")
    told = f"Nothing of {of.value} was to hide."
    if done.media:
        told = f"Quarantined {_media(*done[:2])}."
    elif of.kind == "hash":
        told = f"No media was to hide; whatever comes with {of.value} is hidden too."
    return said(told, *await _telling(asked, done, tell=tell), data=done._asdict())


@command("release", changes=True, long=True)
@click.argument("target", type=HIDEABLE)
async def release(asked: Asked, target: Target) -> Reply:
    """Take the media of TARGET out of quarantine: it is shown again, or fetched.

    What the homeserver was told to hide it is told to show again.
    """
    of, who = await _of(asked, target), Who(asked.actor, asked.place)
    done, notice = Done(), Notice(asked)
    async for done in gently(keep.release(asked.means.pool, of, who)):
        await notice.show(f"Released so far: {_media(*done[:2])}.")
    told = f"Nothing of {of.value} is quarantined."
    if done.media:
        told = f"Released {_media(*done[:2])}."
    return said(told, *await _telling(asked, done, tell=False), data=done._asdict())


async def ask_delete(asked: Asked, target: Target) -> Reply:
    """What would go, and what would stay."""
    of = await _of(asked, target)
    weight = await _weigh(asked, of)
    if not weight.known:
        raise OperationError(f"the archive has nothing of {of.value}")
    rooms = plural(weight.rooms, "room")
    goes = f"{_media(weight.media, weight.size, 'freed')} for ever, posted in {rooms}"
    parts = [f"This deletes {goes if weight.media else 'no media'}."]
    if of.kind != "mxc":
        parts.append("The words, file names and captions of its events go as well.")
    return said(*parts, *_spared(weight), data=weight._asdict())


@command("delete", asks=ask_delete, long=True)
@click.argument("target", type=ANY_TARGET)
async def delete(asked: Asked, target: Target) -> Reply:
    """Delete the media of TARGET for ever, and the words of its events; asks first.

    TARGET is a media (mxc://...), an event ($...), a user (@...) or a room (!..., or its alias).
    What is held stays. So does what events outside an event, a user or a room name too; a media
    that is given by its mxc goes whoever names it. It does not come back when it is posted again.
    That somebody posted it stays known. Given again, it deletes what was left.
    """
    of, notice, erased = await _of(asked, target), Notice(asked), Erased()
    try:
        erasure = Erasure(asked.means.pool, of, Who(asked.actor, asked.place))
        async for erased in gently(erasure.run()):
            await notice.show(f"Deleted so far: {_erased(erased)}.")
    except Cancelled as error:
        raise Cancelled(f"Cancelled: {_erased(erased)} gone so far, the rest is left.") from error
    weight = await _weigh(asked, of)
    data = erased._asdict() | {"held": weight.held, "outside": weight.outside}
    return said(f"Deleted {_erased(erased)}.", *_spared(weight), data=data)


async def _of(asked: Asked, target: Target) -> Of:
    return Of(*await settled(target, asked.means.history))


async def _weigh(asked: Asked, of: Of) -> Weight:
    async with asked.means.pool.acquire() as conn:
        return await erasure.weigh(conn, of)


async def _telling(asked: Asked, done: Done, *, tell: bool) -> list[str]:
    """What the homeserver is told, and whether it lets us."""
    if not done.told and not tell:
        return []
    parts = [f"The homeserver is told of {done.told:,} media."]
    try:
        if not await asked.means.history.is_admin():
            parts.append(
                "It refuses as long as the bot is no administrator there: see `archiver doctor`."
            )
    except ArchiverError as error:
        parts.append(f"It is told as soon as it answers: {error}.")
    return parts


def _spared(weight: Weight) -> list[str]:
    parts = []
    if weight.held:
        parts.append(f"{weight.held:,} media stay because they are held: see `holds`.")
    if weight.outside:
        parts.append(f"{weight.outside:,} media stay because other events name them too.")
    return parts


def _media(media: int, size: int, what: str = "") -> str:
    return f"{media:,} media ({f'{format_size(size)} {what}'.strip()})"


def _erased(erased: Erased) -> str:
    words = f" and the words of {plural(erased.events, 'event')}" if erased.events else ""
    return _media(erased.media, erased.size, "freed") + words


COMMANDS = (quarantine, release, delete, verify, sweep, *scanning.COMMANDS)
