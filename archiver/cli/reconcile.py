"""`archiver reconcile`: rooms are compared with the homeserver's history, now."""

from __future__ import annotations

from datetime import timedelta

import click
import orjson

from archiver.app import capture_policy, history, open_base
from archiver.catalogue import rooms
from archiver.cli.common import with_config
from archiver.config import Config
from archiver.db.pool import Row
from archiver.errors import OperationError
from archiver.history.reconcile import NOTHING_TO_READ, Reconciler
from archiver.matrix.registration import load_registration


class _RoomId(click.ParamType[str]):
    name = "room"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Refuses what is no room's id."""
        if not str(value).startswith("!"):
            self.fail(f"{value} is no room id: those start with an exclamation mark", param, ctx)
        return str(value)


@click.command()
@click.argument("room_ids", metavar="[ROOM]...", type=_RoomId(), nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def reconcile(config: Config, room_ids: tuple[str, ...], as_json: bool) -> None:
    """Look for events that were never pushed, in these rooms or in all, and archive them.

    Ends when every room is compared; an archive that runs takes its share of them.
    """
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    asked = room_ids or None
    async with open_base(config) as base:
        every = config.history.reconcile_every or timedelta(days=1)
        policy, reader = capture_policy(config), history(base, registration)
        began = await Reconciler(base.pool, reader, policy, every).compare(asked)
        async with base.pool.acquire() as conn:
            found = await rooms.found(conn, began, asked)
    if as_json:
        click.echo(orjson.dumps([dict(row) for row in found]))
    else:
        _tell(found)
    if not found:
        raise OperationError(NOTHING_TO_READ)
    if all(row["reason"] for row in found):
        raise OperationError(found[0]["reason"])


def _tell(found: list[Row]) -> None:
    compared = [row for row in found if row["reason"] is None]
    lost = sum(row["found"] for row in compared)
    for row in found:
        if row["found"]:
            click.echo(f"{row['room_id']}: {row['found']:,} events were missing")
        elif row["reason"]:
            click.echo(f"{row['room_id']}: not compared: {row['reason']}")
    outcome = f"{lost:,} missing events are archived now" if lost else "nothing was missing"
    click.echo(f"{len(compared):,} rooms are compared, {outcome}.")
