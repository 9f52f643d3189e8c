"""An archived picture, shown in the control room."""

from __future__ import annotations

import re
from contextlib import aclosing

import click

from archiver.catalogue import custody, previews
from archiver.catalogue.media import Media, look
from archiver.catalogue.previews import Preview
from archiver.control.arguments import MXC, Target, mxc_of
from archiver.control.asked import Asked, Means
from archiver.control.definition import command
from archiver.control.reply import Picture, Reply
from archiver.errors import OperationError
from archiver.matrix.speech import UNHEARD
from archiver.model import Blob, Mxc, State
from archiver.units import format_size

# What a client still shows at once, and a homeserver mostly takes.
LARGEST = 20 * 1024 * 1024
_SAFE = re.compile(r"[^\w. ()-]+")
_HIDDEN = {
    State.PENDING: "is not archived yet",
    State.FAILED: "could not be archived",
    State.EXCLUDED: "is left out",
    State.QUARANTINED: "is in quarantine, and shown to nobody",
    State.DELETED: "was deleted",
}


@command("preview")
@click.argument("mxc", type=MXC)
async def preview(asked: Asked, mxc: Target) -> Reply:
    """Show an archived picture here, in the control room.

    It is uploaded to the homeserver once, and shown from there ever after. Nothing is shown that
    is in quarantine, deleted, or hidden because it was redacted.
    """
    if asked.on_shell:
        raise OperationError("a terminal shows no picture: give this command in the control room")
    means, media = asked.means, mxc_of(mxc)
    hides = True if means.config.capture.on_redaction != "keep" else None
    async with means.pool.acquire() as conn:
        found = await look(conn, media, with_name=True, with_data=False, hides=hides)
        blob = _shown(media, found)
        known = await previews.find(conn, blob.sha256)
        await custody.note(conn, asked.actor, asked.place, "preview", str(media))
    name = _name(found.filename if found else None, media)
    copy = known.mxc or await _upload(means, blob, name)
    picture = Picture(copy, blob.facts.mimetype or "", blob.size, known.width, known.height, name)
    return Reply((f"{media}: {_facts(blob, known)}",), picture=picture)


def _shown(mxc: Mxc, media: Media | None) -> Blob:
    """The bytes to show. Raises OperationError, which says why there are none."""
    if media is None:
        raise OperationError(f"{mxc} is not in the archive: no event that it saw names it")
    if media.state in _HIDDEN or media.blob is None:
        reason = f": {media.reason}" if media.reason else ""
        raise OperationError(f"{mxc} {_HIDDEN.get(media.state, 'has no bytes')}{reason}")
    if media.redacted:
        raise OperationError(f"{mxc} was redacted, and is hidden (capture.on_redaction)")
    kind = media.blob.facts.mimetype or "of no kind that we know, maybe encrypted"
    if not kind.startswith("image/"):
        raise OperationError(f"{mxc} is no picture: it is {kind}")
    if media.blob.size > LARGEST:
        raise OperationError(
            f"{mxc} is {format_size(media.blob.size)}, too large to be shown here: whoever has a "
            f"token reads it at /_matrix/client/v1/media/download/{mxc.server_name}/{mxc.media_id}"
        )
    return media.blob


async def _upload(means: Means, blob: Blob, name: str) -> Mxc:
    kind = blob.facts.mimetype or ""
    try:
        async with aclosing(means.store.read(blob)) as data:
            mxc = await means.speech.upload(data, blob.size, kind, name)
    except UNHEARD as error:
        reason = str(error) or type(error).__name__
        raise OperationError(f"the homeserver did not take the picture: {reason}") from error
    async with means.pool.acquire() as conn:
        await previews.note(conn, blob.sha256, mxc)
    return mxc


def _name(filename: str | None, mxc: Mxc) -> str:
    """What the sender called it, as far as it is a name."""
    return _SAFE.sub("_", filename or "").strip()[:100] or mxc.media_id


def _facts(blob: Blob, known: Preview) -> str:
    pixels = f"{known.width} × {known.height}, " if known.width and known.height else ""  # noqa: RUF001  # between two numbers
    return f"{pixels}{format_size(blob.size)}, {blob.facts.mimetype}"


COMMANDS = (preview,)
