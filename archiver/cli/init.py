"""`archiver init`: two files to start with."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import yaml

from archiver.cli.common import DEFAULT_CONFIG, sentences
from archiver.config import parse_config
from archiver.db.embedded import reachable_data_dir
from archiver.errors import OperationError
from archiver.matrix.registration import new_registration

REGISTRATION = Path("registration.yaml")

CONFIG_TEMPLATE = """\
# Matrix Media Archiver. Every other key, with its default, is explained in config.example.yaml.
homeserver:
  url: {url}
  server_name: {server_name}
appservice:
  registration: {registration}
  listen: 127.0.0.1:29340              # the homeserver pushes here
database:
  url: embedded                        # or postgresql://user:password@host/name
  data_dir: {data_dir}
storage:
  inline_limit: 5 MiB                  # up to here in PostgreSQL, above in the object store
  objects: filesystem                  # or s3
  filesystem:
    path: data/objects
serve:
  listen: 127.0.0.1:29341              # admin panels read here
  public_url: http://localhost:29341
bot:
  control_room: null
  admins: []
"""


@click.command()
@click.option("--homeserver", "url", required=True, help="URL, like http://localhost:8008.")
@click.option("--server-name", required=True, help="What user ids have after the colon.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to write; the present folder by default.",
)
@click.option(
    "--push-url",
    default="http://127.0.0.1:29340",
    show_default=True,
    help="Where the homeserver reaches appservice.listen.",
)
def init(url: str, server_name: str, directory: Path, push_url: str) -> None:
    """Write config.yaml and registration.yaml with fresh tokens."""
    with sentences():
        text = CONFIG_TEMPLATE.format(
            url=_quoted(url),
            server_name=_quoted(server_name),
            registration=REGISTRATION,
            data_dir=_quoted(str(_data_dir(directory))),
        )
        parse_config(yaml.safe_load(text), directory)
        registration = yaml.safe_dump(new_registration(push_url, server_name), sort_keys=False)
        directory.mkdir(parents=True, exist_ok=True)
        files = {directory / DEFAULT_CONFIG: text, directory / REGISTRATION: registration}
        for path in files:
            if path.exists():
                raise OperationError(
                    f"{path} is there already: move it away, or use another folder"
                )
        for path, content in files.items():
            _write_private(path, content)
    registration_path = (directory / REGISTRATION).absolute()
    click.echo(f"Wrote {directory / DEFAULT_CONFIG} and {directory / REGISTRATION}.", err=True)
    click.echo("Add these lines to homeserver.yaml and restart Synapse:\n", err=True)
    click.echo(f"app_service_config_files:\n  - {registration_path}")
    click.echo(
        f"\nSynapse's user must be able to read that file. Then: "
        f"archiver run -c {directory / DEFAULT_CONFIG}",
        err=True,
    )


def _data_dir(directory: Path) -> Path:
    """Beside the configuration, unless PostgreSQL's user could not reach it there."""
    beside = Path("data/postgres")
    absolute = (directory / beside).absolute()
    reachable = reachable_data_dir(absolute)
    return beside if reachable == absolute else reachable


def _quoted(text: str) -> str:
    return (
        text
        if re.fullmatch(r"[\w./:@-]+", text)
        else yaml.safe_dump(text, width=4096).split("\n")[0]
    )


def _write_private(path: Path, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(content)
