"""`make demo`: a homeserver forgets, the archive does not.

Starts a real Synapse and the archiver beside it, lets people post media of every kind in rooms
that the bot never joined, waits until all is archived, deletes it from Synapse, and shows that the
archive still serves every byte. Then it stays up to be looked at; with --once it ends, with exit
status 0 or 1.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from archiver.units import format_size
from demo.people import POLL_RESPONSE, POLL_START, People, Posted
from tests.support.archiver import Archiver, Reader, reachable_folder
from tests.support.encrypted import decrypt
from tests.support.matrix import MatrixError
from tests.support.synapse import Synapse
from tools.setup_services import service_python

SERVER_NAME = "demo.example"

console = Console()


async def main(once: bool) -> bool:
    """Shows it; True when Synapse has nothing any more and the archive every byte."""
    async with AsyncExitStack() as stack:
        folder = reachable_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        synapse, archive = await stack.enter_async_context(_servers(folder))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        with console.status("People gather, talk and post"):
            people = await _people(synapse, http)
            await people.gather()
            await people.post()
        _done(f"{len(people.posted)} media posted in two rooms, the bot in neither")
        reader = Reader(http, archive.url, archive.token)
        with console.status("The archive fetches what was posted"):
            await reader.until("ready", *(posted.mxc for posted in people.posted))
        _done("All of it is archived")
        polls = await reader.events_of(POLL_START) + await reader.events_of(POLL_RESPONSE)
        _done(f"{polls} events of a poll are recorded")
        with console.status("An administrator deletes it from Synapse"):
            for posted in people.posted:
                await people.admin.delete_media(posted.mxc)
        _done("All of it is deleted from Synapse")
        good = await _show(people, reader) and polls == people.poll_events
        if not once:
            _explain(synapse, archive, people)
            await _until_signalled()
    return good


@asynccontextmanager
async def _servers(folder: Path) -> AsyncIterator[tuple[Synapse, Archiver]]:
    """A homeserver that knows the archive, and the archive; ended at the end of the block."""
    archive = Archiver(folder / "archive", server_name=SERVER_NAME)
    with console.status("Setting up Synapse (the first time takes a minute)"):
        python = await asyncio.to_thread(service_python, "synapse")
    with console.status("archiver init; Synapse starts"):
        await asyncio.to_thread(archive.init)
        synapse = Synapse(
            python,
            folder / "synapse",
            registrations=[archive.registration],
            server_name=SERVER_NAME,
        )
        await asyncio.to_thread(synapse.start)
    _done(f"Synapse is up at {synapse.url}")
    try:
        with console.status("archiver run (with an embedded PostgreSQL and a folder for objects)"):
            archive.configure(synapse.url)
            await asyncio.to_thread(archive.start)
        _done(f"The archive is up at {archive.url}")
        try:
            yield synapse, archive
        finally:
            await asyncio.to_thread(archive.stop)
    finally:
        await asyncio.to_thread(synapse.stop)


async def _people(synapse: Synapse, http: aiohttp.ClientSession) -> People:
    return People(
        await synapse.register(http, "admin", admin=True),
        await synapse.register(http, "alice"),
        await synapse.register(http, "bob"),
    )


async def _show(people: People, reader: Reader) -> bool:
    table = Table(title="What Synapse forgot, and the archive kept")
    for heading in ("what", "where", "size", "kept", "Synapse", "archive"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    good = True
    for posted in people.posted:
        synapse, gone = await _ask_synapse(people, posted)
        same = await _is_identical(reader, posted)
        blob = (await reader.state(posted.mxc))["blob"]
        size = format_size(len(posted.data))
        archive = "identical" if same else "[red]DIFFERENT[/]"
        table.add_row(posted.what, posted.where, size, blob["place"], synapse, archive)
        good = good and gone and same
    console.print(table)
    verdict = "[green]Every byte is still there.[/]" if good else "[red]That did not work.[/]"
    console.print(verdict)
    return good


async def _ask_synapse(people: People, posted: Posted) -> tuple[str, bool]:
    try:
        await people.alice.download(posted.mxc)
    except MatrixError as error:
        return f"{error.status} {error.errcode}", error.status == 404
    return "[red]still there[/]", False


async def _is_identical(reader: Reader, posted: Posted) -> bool:
    data = await reader.download(posted.mxc)
    if posted.file is not None:  # the archive keeps the ciphertext; who has the key opens it
        decrypt(data, posted.file)
    return data == posted.data


def _explain(synapse: Synapse, archive: Archiver, people: People) -> None:
    mxc = people.posted[0].mxc.removeprefix("mxc://")
    header = f"-H 'Authorization: Bearer {archive.token}'"
    console.print("\nTry it:", style="bold")
    for path in (
        f"/_matrix/client/v1/media/download/{mxc}",
        f"/api/v1/media/{mxc}",
        "/api/v1/stats",
        "/metrics",
    ):
        console.print(f"  curl {header} {archive.url}{path}", soft_wrap=True, highlight=False)
    console.print(
        f"\nSynapse: {synapse.url}   configuration, logs and data: {archive.folder}\n"
        "Ctrl-C ends both servers and removes their data."
    )


def _done(what: str) -> None:
    console.print(f"[green]done[/]  {what}")


async def _until_signalled() -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end when all was shown")
    try:
        worked = asyncio.run(main(parser.parse_args().once))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if worked else 1)
