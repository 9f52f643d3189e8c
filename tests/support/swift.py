"""A real S3 server: OpenStack Swift with its S3 API, one device, on loopback.

`If-None-Match` is checked there but not atomically, `If-Match` on a put is answered with 501.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from tests.support.process import Server, ServerError, accepts, answers, free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
ACCOUNT, USER = "archive", "tester"
BACKENDS = ("account", "container", "object")

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = {prefix}
swift_hash_path_suffix = archive
[storage-policy:0]
name = Policy-0
default = yes
"""

BACKEND_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {etc}
devices = {devices}
mount_check = false
disable_fallocate = true
user = {user}
log_level = WARNING
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {etc}
user = {user}
log_level = WARNING
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache bulk s3api tempauth copy slo dlo \
versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
conn_timeout = 5
node_timeout = 60
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = {region}
max_upload_part_num = 10000
dns_compliant_bucket_names = true
[filter:tempauth]
use = egg:swift#tempauth
user_{login} = {secret} .admin
[filter:cache]
paste.filter_factory = swift_node:cache_factory
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
"""


@dataclass(frozen=True)
class S3Endpoint:
    """How to reach an S3 server. Buckets must be addressed by path, not by host name."""

    endpoint_url: str
    region: str
    access_key_id: str
    secret_access_key: str

    def settings(self, **more: Any) -> dict[str, Any]:
        """`storage.s3` of config.yaml, but for the bucket; our own classes take the same words."""
        return {**asdict(self), "addressing_style": "path", **more}

    def client(self) -> S3Client:
        """One that does not hide an outage behind retries. To be closed."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
            ),
        )


class Swift:
    """Account, container, object and proxy server over one folder.

    `stop` and `start` keep the ports and the data, so that a test can take S3 away for a while.
    All calls block; within a running loop use `asyncio.to_thread`.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        """`python` is the interpreter of an environment that has Swift; `folder` is made."""
        self._python = python
        self._folder = folder
        self._secret = secrets.token_hex(16)
        self._ports = {kind: free_port() for kind in (*BACKENDS, "proxy")}
        self._configure()
        self._servers = [self._server(kind) for kind in (*BACKENDS, "proxy")]

    @property
    def endpoint(self) -> S3Endpoint:
        """What a client needs; the same before and after a stop."""
        url = f"http://127.0.0.1:{self._ports['proxy']}"
        return S3Endpoint(url, REGION, f"{ACCOUNT}:{USER}", self._secret)

    def start(self) -> None:
        """Returns when all four servers answer. Raises ServerError."""
        try:
            for server in self._servers:
                server.spawn()
            for server in self._servers:
                server.wait_ready()
        except ServerError:
            self.kill()
            raise

    def stop(self) -> None:
        """Ends the servers; the data stays."""
        for server in reversed(self._servers):
            server.stop()

    def kill(self) -> None:
        """Ends the servers as a crash would."""
        for server in reversed(self._servers):
            server.kill()

    def _configure(self) -> None:
        etc = self._folder / "etc"
        etc.mkdir(parents=True)
        devices = self._folder / "devices"
        (devices / "d1").mkdir(parents=True)
        _check_attributes(devices)
        # The name is not `swift`, and its folder holds nothing else that could be imported.
        shutil.copy(Path(__file__).with_name("swift_node.py"), etc)
        (etc / "swift.conf").write_text(SWIFT_CONF.format(prefix=secrets.token_hex(8)), "utf-8")
        user = pwd.getpwuid(os.geteuid()).pw_name
        for kind in BACKENDS:
            text = BACKEND_CONF.format(
                kind=kind, port=self._ports[kind], etc=etc, devices=devices, user=user
            )
            (etc / f"{kind}.conf").write_text(text, "utf-8")
        login = f"{ACCOUNT}_{USER}"
        proxy = PROXY_CONF.format(
            port=self._ports["proxy"],
            etc=etc,
            user=user,
            region=REGION,
            login=login,
            secret=self._secret,
        )
        (etc / "proxy.conf").write_text(proxy, "utf-8")
        ports = [f"{kind}={self._ports[kind]}" for kind in BACKENDS]
        subprocess.run(
            [self._python, etc / "swift_node.py", etc, *ports],
            check=True,
            cwd=etc,
            stdout=subprocess.DEVNULL,
        )

    def _server(self, kind: str) -> Server:
        port = self._ports[kind]
        program = self._python.with_name(f"swift-{kind}-server")
        etc = self._folder / "etc"
        health = f"http://127.0.0.1:{port}/healthcheck"
        return Server(
            f"swift-{kind}",
            [str(self._python), "-u", str(program), str(etc / f"{kind}.conf")],
            self._folder / f"{kind}.log",
            ready=lambda: answers(health) if kind == "proxy" else accepts(port),
            env={"PYTHONPATH": str(etc)},
        )


def _check_attributes(folder: Path) -> None:
    """Swift keeps an object's metadata in extended attributes, which some tmpfs lack."""
    try:
        os.setxattr(folder, "user.archiver", b"yes")
    except OSError as error:
        raise ServerError(
            f"{folder} takes no extended attributes ({error}), which Swift needs: "
            "set TMPDIR to a folder on a disk"
        ) from error
