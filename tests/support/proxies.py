"""nginx and Caddy before a homeserver, with the examples of deploy/ as they are shipped.

Only the addresses are put in. Start and stop block; in a running loop use `asyncio.to_thread`.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.process import Server, accepts, free_port

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
SYNAPSE, ARCHIVE = "127.0.0.1:8008", "127.0.0.1:29341"

NGINX_CONF = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    include example.conf;
}}
"""

CADDYFILE = """\
{
	admin off
	persist_config off
	auto_https off
	default_bind 127.0.0.1
}
import example.caddyfile
"""


class Nginx:
    """nginx with deploy/nginx.conf.example between clients, a homeserver and an archive."""

    def __init__(self, program: Path, folder: Path, synapse_url: str, archive_url: str) -> None:
        """`program` is nginx; `folder` is made, and nothing outside of it is written."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        example = _example("nginx.conf.example", synapse_url, archive_url)
        folder.mkdir()
        (folder / "example.conf").write_text(
            _put(example, "listen 80;", f"listen 127.0.0.1:{port};"), "utf-8"
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(NGINX_CONF.format(user=user), "utf-8")
        prefix, conf = f"{folder}/", str(folder / "nginx.conf")
        self._server = Server(
            "nginx",
            [str(program), "-p", prefix, "-c", conf, "-e", "stderr"],
            folder / "nginx.log",
            ready=lambda: accepts(port),
        )

    def start(self) -> None:
        """Returns when it takes connections. Raises ServerError."""
        self._server.start()

    def stop(self) -> None:
        """Asks it to end."""
        self._server.stop()


class Caddy:
    """Caddy with deploy/Caddyfile.example between clients, a homeserver and an archive."""

    def __init__(self, program: Path, folder: Path, synapse_url: str, archive_url: str) -> None:
        """`program` is Caddy; `folder` is made, and nothing outside of it is written."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        example = _example("Caddyfile.example", synapse_url, archive_url)
        folder.mkdir()
        (folder / "example.caddyfile").write_text(
            _put(example, "\nmatrix.example.com {", f"\n{self.url} {{"), "utf-8"
        )
        (folder / "Caddyfile").write_text(CADDYFILE, "utf-8")
        arguments = ["run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
        self._server = Server(
            "caddy",
            [str(program), *arguments],
            folder / "caddy.log",
            ready=lambda: accepts(port),
            env=homes,
        )

    def start(self) -> None:
        """Returns when it takes connections. Raises ServerError."""
        self._server.start()

    def stop(self) -> None:
        """Asks it to end."""
        self._server.stop()


def _example(name: str, synapse_url: str, archive_url: str) -> str:
    text = (DEPLOY / name).read_text("utf-8")
    text = _put(text, SYNAPSE, urlsplit(synapse_url).netloc)
    return _put(text, ARCHIVE, urlsplit(archive_url).netloc)


def _put(text: str, old: str, new: str) -> str:
    assert old in text, f"the example has no {old!r} any more"
    return text.replace(old, new)
