"""config.yaml and the environment become a checked Config, or plain sentences."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from archiver.config import Config, load_config
from archiver.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
MINIMAL = "homeserver: {url: 'http://localhost:8008', server_name: example.com}\n"
MIB = 1024 * 1024

DEFAULTS: dict[str, Any] = {
    "homeserver.url": "http://localhost:8008",
    "homeserver.server_name": "example.com",
    "appservice.registration": "registration.yaml",
    "appservice.listen": ("127.0.0.1", 29340),
    "database.url": "embedded",
    "database.data_dir": "data/postgres",
    "storage.inline_limit": 5 * MIB,
    "storage.objects": "filesystem",
    "storage.move_from": None,
    "storage.filesystem.path": "data/objects",
    "storage.s3.endpoint_url": None,
    "storage.s3.region": "us-east-1",
    "storage.s3.bucket": "media-archive",
    "storage.s3.prefix": "",
    "storage.s3.access_key_id": None,
    "storage.s3.secret_access_key": None,
    "storage.s3.addressing_style": "auto",
    "storage.spool": "data/spool",
    "capture.rooms.only": (),
    "capture.rooms.except": (),
    "capture.remote_media": True,
    "capture.max_size": None,
    "capture.on_redaction": "keep",
    "capture.delete_after": timedelta(days=7),
    "retention.rules": (),
    "retention.every": timedelta(hours=1),
    "quarantine.tell_homeserver": False,
    "history.reconcile_every": timedelta(minutes=10),
    "history.remote_rate": 64 * 1024,
    "worker.concurrency": 8,
    "worker.lease": timedelta(seconds=30),
    "worker.stop_within": timedelta(seconds=20),
    "worker.verify_rate": MIB,
    "worker.verify_every": timedelta(days=30),
    "thumbnails.helpers": 2,
    "thumbnails.background": True,
    "scan.with": None,
    "scan.clamd": "127.0.0.1:3310",
    "scan.command": (),
    "scan.max_size": 100 * MIB,
    "scan.timeout": timedelta(minutes=2),
    "scan.concurrency": 2,
    "serve.listen": ("127.0.0.1", 29341),
    "serve.public_url": "http://localhost:29341",
    "serve.matrix_tokens": "admins",
    "serve.read_through": True,
    "serve.redirect_objects": False,
    "serve.hot_cache": 64 * MIB,
    "serve.signed_for_at_most": timedelta(days=7),
    "serve.rate_limit": 100,
    "serve.rate_burst": 500,
    "serve.failure_limit": 60,
    "serve.trusted_proxies": (),
    "serve.processes": 1,
    "serve.keep_reads": timedelta(days=90),
    "bot.control_room": None,
    "bot.prefix": "!archive",
    "bot.admins": (),
    "bot.power_level": None,
    "bot.confirm_within": timedelta(minutes=10),
    "bot.notify": (
        "trouble",
        "disk",
        "failed",
        "gaps",
        "damage",
        "custody",
        "infected",
        "scan",
    ),
    "log.format": "console",
    "log.level": "info",
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of sections as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def settings(config: Config, base: Path) -> dict[str, Any]:
    """The whole configuration by dotted key, its paths as seen from `base`."""
    values = flat(config.model_dump(by_alias=True))
    return {
        key: str(value.relative_to(base)) if isinstance(value, Path) else value
        for key, value in values.items()
    }


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads `text` as the file, with an environment of its own."""

    def loader(text: str = MINIMAL, **environment: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(text, "utf-8")
        return load_config(path, environment)

    return loader


def test_the_defaults_are_those_of_the_documentation(load: Any, tmp_path: Path) -> None:
    """A file with the homeserver alone gives every other key its documented value."""
    assert settings(load(), tmp_path) == DEFAULTS


def test_the_example_shows_every_key_with_its_default() -> None:
    """The example is accepted, leaves no key out and no value differs from the default."""
    assert settings(load_config(EXAMPLE, {}), EXAMPLE.parent) == DEFAULTS
    assert flat(yaml.safe_load(EXAMPLE.read_text("utf-8"))).keys() == DEFAULTS.keys()


def test_the_example_explains_every_key() -> None:
    """Each key's line ends in a comment, or is one of a group that the line above explains."""
    lines = EXAMPLE.read_text("utf-8").splitlines()
    values = [line for line in lines if ": " in line and not line.startswith("#")]
    unexplained = {line.split(":")[0].strip() for line in values if "  # " not in line}
    assert unexplained <= {"region", "secret_access_key"}


def test_paths_start_at_the_files_folder(load: Any, tmp_path: Path) -> None:
    """A relative path is taken from where the file lies, an absolute one as it is."""
    config = load(MINIMAL + "storage: {spool: /var/spool, filesystem: {path: ../o}}\n")
    assert config.storage.spool == Path("/var/spool")
    assert config.storage.filesystem.path == tmp_path / "../o"
    assert config.database.data_dir == tmp_path / "data/postgres"
    assert config.appservice.registration == tmp_path / "registration.yaml"


def test_paths_are_absolute_for_a_relative_file(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-c config.yaml` in the present folder gives absolute paths all the same."""
    load()
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("config.yaml"), {}).storage.spool == tmp_path / "data/spool"


def test_values_are_read_with_their_units(load: Any) -> None:
    """Sizes, spans of time, addresses, URLs, lists, and numbers where text is meant."""
    config = load(
        MINIMAL
        + """
storage: {inline_limit: 1.5 MiB, s3: {bucket: 12345, endpoint_url: "https://s3.test/"}}
capture: {max_size: 2 GB, rooms: {only: ["!a:b"], except: ["!c:d", 5]}}
worker: {lease: 2 m}
serve: {listen: "[::1]:0", hot_cache: 0}
"""
    )
    assert config.storage.inline_limit == MIB * 3 // 2
    assert (config.storage.s3.bucket, config.storage.s3.endpoint_url) == (
        "12345",
        "https://s3.test",
    )
    assert config.capture.max_size == 2_000_000_000
    assert (config.capture.rooms.only, config.capture.rooms.except_) == (
        ("!a:b",),
        ("!c:d", "5"),
    )
    assert config.worker.lease == timedelta(minutes=2)
    assert (config.serve.listen, config.serve.hot_cache) == (("::1", 0), 0)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("HOMESERVER__SERVER_NAME", "other.test", "homeserver.server_name", "other.test"),
        ("WORKER__CONCURRENCY", "3", "worker.concurrency", 3),
        ("WORKER__LEASE", "90 s", "worker.lease", timedelta(seconds=90)),
        ("CAPTURE__REMOTE_MEDIA", "false", "capture.remote_media", False),
        ("CAPTURE__MAX_SIZE", "null", "capture.max_size", None),
        ("CAPTURE__MAX_SIZE", "1024", "capture.max_size", 1024),
        ("CAPTURE__ROOMS__ONLY", '["!a:b", "!c:d"]', "capture.rooms.only", ("!a:b", "!c:d")),
        ("CAPTURE__ROOMS__EXCEPT", "[]", "capture.rooms.except", ()),
        ("STORAGE__S3__BUCKET", "0123", "storage.s3.bucket", "0123"),
        ("STORAGE__S3__PREFIX", "", "storage.s3.prefix", ""),
        ("STORAGE__S3", "{bucket: b}", "storage.s3.bucket", "b"),
        ("STORAGE__S3__ACCESS_KEY_ID", "yes", "storage.s3.access_key_id", "yes"),
        ("STORAGE__S3__SECRET_ACCESS_KEY", "*a: &b#", "storage.s3.secret_access_key", "*a: &b#"),
        ("BOT__PREFIX", "!archive", "bot.prefix", "!archive"),
        ("BOT__CONTROL_ROOM", "#room:b", "bot.control_room", "#room:b"),
        ("BOT__ADMINS", '["@a:b"]', "bot.admins", ("@a:b",)),
    ],
)
def test_the_environment_overrides_the_file(
    load: Any, name: str, text: str, key: str, value: object
) -> None:
    """At every depth; text is taken as written, so that ids and passwords need no quotes."""
    given = MINIMAL + "capture: {max_size: 5}\nstorage: {s3: {bucket: c, prefix: d}}\n"
    before, after = load(given), load(given, **{f"ARCHIVER_{name}": text})
    root = after.appservice.registration.parent
    changed = settings(after, root)
    assert changed[key] == value
    assert changed | {key: None} == settings(before, root) | {key: None} or name == "STORAGE__S3"


def test_the_environment_can_be_all_there_is(load: Any) -> None:
    """An empty file will do, and variables that are no settings are left alone."""
    config = load(
        "",
        ARCHIVER_HOMESERVER__URL="http://h:1/",
        ARCHIVER_HOMESERVER__SERVER_NAME="h",
        ARCHIVER_CACHE="/x",
        HOME="/root",
    )
    assert config.homeserver.url == "http://h:1"


SIZE = "is no size: write a number and a unit, like 5 MiB or 100 kB"
SPAN = "is no span of time: write a number and a unit, like 30 d, 12 h or 90 s"
ADDRESS = "is no address: write host:port, like 127.0.0.1:29340"
URL = "is no URL: it starts with http:// or https://"
DATABASE = "is neither embedded nor a URL like postgresql://user:password@host/name"
NO_KEY = "there is no such key; see config.example.yaml for all of them"
LIST = "is a list: write - item lines below it, or [one, two]"
SECTION = "is a section: it holds keys of its own"
CLAMD = (
    "is neither an address like 127.0.0.1:3310 nor the path of a socket like /run/clamav/clamd.ctl"
)
NAME = "is no server name: the part of user ids after the colon, like example.com"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("typo: 1", f"typo: {NO_KEY}"),
        ("5: 1", "5: is no key: keys are words (it is 5)"),
        ("serve: {typo: 1}", f"serve.typo: {NO_KEY}"),
        ("storage: {s3: {typo: secret}}", f"storage.s3.typo: {NO_KEY}"),
        ("storage: {filesystem: {typo: 1}}", f"storage.filesystem.typo: {NO_KEY}"),
        ("capture: {rooms: {typo: 1}}", f"capture.rooms.typo: {NO_KEY}"),
        ("capture: {rooms: {except_: []}}", f"capture.rooms.except_: {NO_KEY}"),
        ("serve: 5", f"serve: {SECTION} (it is 5)"),
        ("serve: [a]", f"serve: {SECTION}"),
        ("serve:", f"serve: {SECTION} (it is None)"),
        ("homeserver: {server_name: a}", "homeserver.url: is missing"),
        ("homeserver: {url: 'http://a'}", "homeserver.server_name: is missing"),
        ("homeserver: {url: a, server_name: a}", f"homeserver.url: {URL} (it is 'a')"),
        (
            "homeserver: {url: 'http:///x', server_name: a}",
            f"homeserver.url: {URL} (it is 'http:///x')",
        ),
        (
            "homeserver: {url: 'http://a', server_name: a/b}",
            f"homeserver.server_name: {NAME} (it is 'a/b')",
        ),
        (
            "homeserver: {url: 'http://a', server_name: 5}",
            f"homeserver.server_name: {NAME} (it is 5)",
        ),
        ("appservice: {listen: 29340}", f"appservice.listen: {ADDRESS} (it is 29340)"),
        ("appservice: {listen: 'a:99999'}", f"appservice.listen: {ADDRESS} (it is 'a:99999')"),
        ("appservice: {listen: '::1:80'}", f"appservice.listen: {ADDRESS} (it is '::1:80')"),
        ("appservice: {registration: 5}", "appservice.registration: is no path (it is 5)"),
        ("database: {url: 'mysql://u:hunter2@h/d'}", f"database.url: {DATABASE}"),
        ("database: {url: 5}", f"database.url: {DATABASE}"),
        ("storage: {inline_limit: big}", f"storage.inline_limit: {SIZE} (it is 'big')"),
        ("storage: {inline_limit: null}", f"storage.inline_limit: {SIZE} (it is None)"),
        (
            "storage: {inline_limit: 257 MiB}",
            "storage.inline_limit: is more than 256 MiB: PostgreSQL keeps such values in memory "
            "as a whole (it is '257 MiB')",
        ),
        ("storage: {objects: ftp}", "storage.objects: is not 'filesystem' or 's3' (it is 'ftp')"),
        ("storage: {s3: {bucket: true}}", "storage.s3.bucket: is no text (it is True)"),
        ("storage: {s3: {region: null}}", "storage.s3.region: is no text (it is None)"),
        (
            "storage: {s3: {secret_access_key: [hunter2]}}",
            "storage.s3.secret_access_key: is no text",
        ),
        ("storage: {s3: {secret_access_key: true}}", "storage.s3.secret_access_key: is no text"),
        (
            "capture: {remote_media: maybe}",
            "capture.remote_media: is neither true nor false (it is 'maybe')",
        ),
        ("capture: {remote_media: []}", "capture.remote_media: is neither true nor false"),
        ("capture: {max_size: -1}", f"capture.max_size: {SIZE} (it is -1)"),
        (
            "capture: {on_redaction: burn}",
            "capture.on_redaction: is not 'keep', 'hide' or 'delete' (it is 'burn')",
        ),
        ("capture: {rooms: {only: '!a:b'}}", f"capture.rooms.only: {LIST} (it is '!a:b')"),
        ("capture: {rooms: {only: [null]}}", "capture.rooms.only.0: is no text (it is None)"),
        ("worker: {concurrency: 0}", "worker.concurrency: is outside 1 to 256 (it is 0)"),
        ("worker: {concurrency: 257}", "worker.concurrency: is outside 1 to 256 (it is 257)"),
        ("worker: {concurrency: many}", "worker.concurrency: is no whole number (it is 'many')"),
        ("worker: {concurrency: 1.5}", "worker.concurrency: is no whole number (it is 1.5)"),
        ("worker: {concurrency: null}", "worker.concurrency: is no whole number (it is None)"),
        (
            "worker: {verify_rate: 1}",
            "worker.verify_rate: is less than 1 KiB a second; null switches it off (it is 1)",
        ),
        (
            "worker: {verify_every: 0 s}",
            "worker.verify_every: is shorter than a second (it is '0 s')",
        ),
        ("worker: {lease: 30}", f"worker.lease: {SPAN} (it is 30)"),
        ("worker: {lease: 0 s}", "worker.lease: is shorter than a second (it is '0 s')"),
        (
            "serve: {trusted_proxies: [10.0.0.1/8]}",
            "serve.trusted_proxies.0: is no address and no network, like 10.0.0.0/8 or ::1"
            " (it is '10.0.0.1/8')",
        ),
        ("serve: {rate_limit: 0}", "serve.rate_limit: is outside 1 to 1000000 (it is 0)"),
        (
            "serve: {signed_for_at_most: 2 y}",
            f"serve.signed_for_at_most: {SPAN} (it is '2 y')",
        ),
        (
            "serve: {signed_for_at_most: 400 d}",
            "serve.signed_for_at_most: is outside a second to a year (it is '400 d')",
        ),
        ("scan: {with: antivir}", "scan.with: is not 'clamd' or 'command' (it is 'antivir')"),
        ("scan: {clamd: 3310}", f"scan.clamd: {CLAMD} (it is 3310)"),
        ("scan: {clamd: 'host:99999'}", f"scan.clamd: {CLAMD} (it is 'host:99999')"),
        ("scan: {clamd: run/clamd.ctl}", f"scan.clamd: {CLAMD} (it is 'run/clamd.ctl')"),
        ("scan: {command: clamdscan -}", f"scan.command: {LIST} (it is 'clamdscan -')"),
        (
            "scan: {with: command}",
            "scan: with is command, and command names no program: write a list of it",
        ),
        ("scan: {timeout: 0 s}", "scan.timeout: is outside a second to an hour (it is '0 s')"),
        ("scan: {concurrency: 0}", "scan.concurrency: is outside 1 to 64 (it is 0)"),
        ("scan: {max_size: null}", f"scan.max_size: {SIZE} (it is None)"),
        ("retention: {rules: {keep: 1 d}}", f"retention.rules: {LIST}"),
        ("retention: {rules: [{typo: 1}]}", f"retention.rules.0.typo: {NO_KEY}"),
        ("retention: {every: 0 s}", "retention.every: is shorter than a second (it is '0 s')"),
        (
            "retention: {rules: [{keep: ever}]}",
            f"retention.rules.0.keep: {SPAN}; or forever (it is 'ever')",
        ),
        (
            "retention: {rules: [{keep_unread: 5}]}",
            f"retention.rules.0.keep_unread: {SPAN} (it is 5)",
        ),
        ("retention: {rules: [{quota: much}]}", f"retention.rules.0.quota: {SIZE} (it is 'much')"),
        (
            "retention: {rules: [{keep: 1 d}, {keep: forever, quota: 1 GiB}]}",
            "retention.rules.1: says more than one of keep, keep_unread, quota and quota_per_room",
        ),
        (
            "retention: {rules: [{quota: 1 GiB, quota_per_room: 1 GiB}]}",
            "retention.rules.0: says more than one of keep, keep_unread, quota and quota_per_room",
        ),
        (
            "retention: {rules: [{room: '#a:b'}]}",
            "retention.rules.0.room: is no room id: it starts with ! (an alias will not do)"
            " (it is '#a:b')",
        ),
        (
            "retention: {rules: [{mimetype: video}]}",
            "retention.rules.0.mimetype: is no type like image/gif or video/* (it is 'video')",
        ),
        ("bot: {admins: {a: b}}", f"bot.admins: {LIST}"),
        (
            "log: {level: loud}",
            "log.level: is not 'debug', 'info', 'warning' or 'error' (it is 'loud')",
        ),
    ],
)
def test_a_mistake_is_one_plain_sentence(load: Any, text: str, sentence: str) -> None:
    """It begins with the dotted key, shows the value unless it could be secret, and is alone."""
    given = text if "homeserver" in text else MINIMAL + text
    with pytest.raises(ConfigError) as caught:
        load(given)
    assert str(caught.value) == sentence


def test_several_mistakes_are_several_lines(load: Any) -> None:
    """All are told at once, each in a line of its own."""
    with pytest.raises(ConfigError) as caught:
        load("worker: {concurrency: 0}\ntypo: 1\n", ARCHIVER_LOG__LEVEL="loud")
    assert sorted(line.split(":")[0] for line in str(caught.value).splitlines()) == [
        "homeserver",
        "log.level",
        "typo",
        "worker.concurrency",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1, 2", "(line 1, column 9)"),
        (MINIMAL + "bot: {prefix: !hunter2}", "(line 2, column "),
        (MINIMAL + "storage: {s3: {secret_access_key: *hunter2}}", "(line 2, column 35)"),
        ("a: 2024-99-99", "YAML;"),
        ("\0", "YAML;"),
    ],
)
def test_a_file_that_is_no_yaml_is_said(load: Any, text: str, sentence: str) -> None:
    """With its place, and with none of its words: they could be a secret."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert "config.yaml: the configuration is no valid YAML" in message
    assert sentence in message
    assert message.endswith("put quotes around what begins with ! @ # * & or %")
    assert "hunter2" not in message


@pytest.mark.parametrize("text", ["- a\n", "hello", "5"])
def test_a_file_without_keys_is_said(load: Any, text: str) -> None:
    """A list or a word is no configuration."""
    with pytest.raises(ConfigError, match=r"must hold keys and values, like `homeserver:`$"):
        load(text)


def test_a_file_in_another_encoding_is_said(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are a sentence as well."""
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is no valid YAML"):
        load_config(path, {})


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With the reason, and with what writes one."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read \(.+\); `archiver init` writes"):
            load_config(path, {})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ARCHIVER_WORKER__CONCURRENCY", "many", "worker.concurrency: is no whole number"),
        ("ARCHIVER_WORKER__TYPO", "1", f"worker.typo: {NO_KEY}"),
        ("ARCHIVER_TYPO__KEY", "1", f"typo: {NO_KEY}"),
        ("ARCHIVER_DATABASE__URL", "mysql://hunter2", f"database.url: {DATABASE}"),
        ("ARCHIVER_BOT__ADMINS", "[@hunter2:b]", "ARCHIVER_BOT__ADMINS: is no valid YAML; put"),
        ("ARCHIVER_BOT__ADMINS", "@a:b", f"bot.admins: {LIST}"),
    ],
)
def test_a_mistake_in_the_environment_is_said(
    load: Any, name: str, value: str, sentence: str
) -> None:
    """Just as in the file; where the value cannot be read, with the variable's name."""
    with pytest.raises(ConfigError) as caught:
        load(**{name: value})
    assert str(caught.value).startswith(sentence)
    assert "hunter2" not in str(caught.value)
