"""nginx: what a web server does with the same bytes as files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.process import Server, accepts, free_port
from tools.setup_services import service_program

CONF = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type image/png;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""


def find() -> str:
    """The system's, which administrators often have in nobody's PATH; else that of the tests."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return shutil.which("nginx", path=path) or str(service_program("nginx"))


def start(folder: Path, root: Path) -> tuple[Server, int]:
    """One worker over the files in `root`; returns the server and its port."""
    folder.mkdir()
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    conf = folder / "nginx.conf"
    conf.write_text(CONF.format(folder=folder, port=port, root=root, user=user), "utf-8")
    command = [find(), "-c", str(conf), "-e", str(folder / "error.log")]
    server = Server("nginx", command, folder / "nginx.log", ready=lambda: accepts(port))
    server.start()
    return server, port
