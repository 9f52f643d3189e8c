"""Whatever happens in whatever order: what must stay is there, what had to go is gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from archiver.catalogue import holds
from archiver.catalogue.queue import Job
from archiver.catalogue.targets import Target
from archiver.config.retention import Rule
from archiver.fetch.again import again
from archiver.fetch.archive import archive_one
from archiver.imaging.recipe import STANDARD
from archiver.imaging.wire import Rendered
from archiver.keep.erasure import Erasure
from archiver.keep.moving import Mover, Sizes
from archiver.keep.quarantine import OURSELVES, quarantine, release
from archiver.keep.repair import Repairer
from archiver.keep.retention import Retention
from archiver.keep.verify import Verifier
from archiver.model import Place, Source
from archiver.variants.recipes import name_of
from tests.support.fetching import claim
from tests.support.keeping import ADMIN
from tests.support.model import EXPIRES, SPANS, UNREAD, Posted, Said, World
from tests.support.redacting import SERVER, put, redact, redaction
from tests.support.rehearsal import (
    A_WHILE,
    BODIES,
    DIGESTS,
    GRACE,
    Process,
    Stage,
    event_of,
    rehearsing,
    text_of,
)
from tests.support.serving import MATRIX
from tests.support.stepping import Died

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

# More, and others each time, where the environment says how many.
EXAMPLES = int(os.environ.get("ARCHIVER_TEST_EXAMPLES", "60"))
STEPS = 50
SHRINKING = "hypothesis.internal.conjecture.engine.MAX_SHRINKING_SECONDS"
SHRINK_SECONDS = 60.0
NAMES = [f"m{number}" for number in range(7)]
SPARE = [f"spare{number}" for number in range(8)]  # instead of what is gone for ever
MEDIA = len(NAMES + SPARE)
ROOMS = ["!kitchen", "!garden"]
HOLDS = ["mxc", "event", "user", "room", "hash", "span"]
USERS = ["@alice:remote.example", "@bob:remote.example"]
ALL = Sizes(-1, 1 << 62)
EXPIRING = [
    Rule.model_validate({"kind": "avatar", "keep": f"{EXPIRES} d"}),
    Rule.model_validate({"keep": f"{EXPIRES} d"}),
]
UNREAD_EXPIRING = [Rule.model_validate({"keep_unread": f"{UNREAD * A_WHILE.days - 1} d"})]

MOVES = ["inline", "objects", "from the former store"]

names = st.sampled_from(NAMES)
bodies = st.integers(0, len(BODIES) - 1)
# After so many steps a process dies; mostly it does not.
deaths = st.one_of(st.none(), st.none(), st.integers(0, 12))
pauses = st.integers(0, 8)
picks = st.integers(0, 1000)  # of what there is by then
posts = st.builds(
    Posted,
    names=st.lists(names, min_size=1, max_size=2, unique=True).map(tuple),
    room=st.sampled_from(ROOMS),
    sender=st.sampled_from(USERS),
    kind=st.sampled_from(["image", "image", "image", "sticker", "avatar", "avatar"]),
    days=st.sampled_from([100, 0, 10, 100]),
    pushed=st.booleans(),
    replaces=st.none(),
    redacted=st.none(),
    wordy=st.just(True),
).map(lambda event: replace(event, names=event.names[:1]) if event.kind == "avatar" else event)


class Paused(NamedTuple):
    """A process that is held up, and what it will have done, if it has not yet."""

    task: asyncio.Task[Any]
    process: Process
    effect: Callable[[World], None]


def nothing(_world: World) -> None:
    """What is seen of it from outside."""


async def through(steps: AsyncIterator[Any]) -> None:
    """To the end."""
    async for _ in steps:
        pass


class Machine(RuleBasedStateMachine):
    """Each rule is done to the archive and to the model, which then have to agree."""

    def __init__(self, runner: asyncio.Runner, stage: Stage) -> None:
        super().__init__()
        self.runner = runner
        self.stage = stage
        self.world = World({})
        self.jobs: list[Job] = []
        self.paused: list[Paused] = []
        self.sound = False
        self.looked: dict[str, tuple[Any, bool]] = {}

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        self.sound = False
        return self.runner.run(awaited())

    # What happens in rooms.

    @initialize(
        bodies=st.lists(bodies, min_size=MEDIA, max_size=MEDIA),
        events=st.lists(posts, min_size=3, max_size=6),
    )
    def begin(self, bodies: list[int], events: list[Posted]) -> None:
        """With something in the archive, or else most rules would have nothing to do."""
        self.world = World(dict(zip(NAMES + SPARE, bodies, strict=True)))
        self.run(self.stage.clear(self.world.bodies))
        for event in events:
            self.post(event)
        self._fetch_all()

    @rule(event=posts)
    def post(self, event: Posted) -> None:
        self._post(event)

    @rule(pick=picks, name=names)
    def edit(self, pick: int, name: str) -> None:
        key = self._unredacted(pick)
        of = self.world.events[key] if key else None
        if key and of and of.replaces is None and of.kind != "avatar":
            self._post(replace(of, names=(name,), replaces=key, wordy=True))

    @rule(pick=picks, source=st.sampled_from(Source))
    def tell_again(self, pick: int, source: Source) -> None:
        """History, or a homeserver that repeats itself: as the event is by then."""
        if key := self._unredacted(pick):
            event = self.world.events[key]
            self.run(self._record(event_of(key, event), source))
            self.world.post(key, event)
            self._compare(self.world)

    @rule(pick=picks)
    def redact(self, pick: int) -> None:
        if key := self._unredacted(pick):
            self._redact(key)

    @rule(pick=picks, event=posts, again=st.booleans(), dies=st.integers(0, 8))
    def redact_altogether(self, pick: int, event: Posted, again: bool, dies: int) -> None:
        """Nothing names it any more; or somebody posts it again before it goes."""
        name = self._ready(pick, event)
        for key, other in list(self.world.events.items()):
            if name in other.names and self.world.events[key].redacted is None:
                self._redact(key)
        if again:
            self._post(replace(event, names=(name,)))
        self.tidy(later=True, dies=None if again else dies)

    def _alive(self, name: str) -> str:
        """This one, or another if no posting would bring it back."""
        fates = self.world.fates
        spare = [one for one in SPARE if one not in fates]
        return spare[0] if spare and name in fates and fates[name].for_ever else name

    def _ready(self, pick: int, event: Posted) -> str:
        """One of what has come; there may be none, unless this is posted."""
        ready = sorted(name for name, fate in self.world.fates.items() if fate.state == "ready")
        if not ready:
            ready = [self._alive(event.names[0])]
            self._post(replace(event, names=(ready[0],)))
            self._fetch_all()
        return ready[pick % len(ready)]

    def _unredacted(self, pick: int) -> str | None:
        found = sorted(k for k, event in self.world.events.items() if event.redacted is None)
        return found[pick % len(found)] if found else None

    def _redact(self, key: str) -> None:
        room = self.world.events[key].room
        self.run(self._record(redaction(f"$r{key[1:]}", key, room_id=room), Source.PUSH))
        self.world.redact(key)
        self._compare(self.world)

    def _post(self, event: Posted) -> str:
        key = f"${len(self.world.events):03}"
        source = Source.PUSH if event.pushed else Source.BACKFILL
        self.run(self._record(event_of(key, event), source))
        self.world.post(key, event)
        self._compare(self.world)
        return key

    async def _record(self, event: dict[str, Any], source: Source) -> None:
        async with self.stage.pool.acquire() as conn:
            await put(conn, event, source=source)
        await redact(self.stage.pool)

    # What workers do.

    @rule()
    def claim(self) -> None:
        """A worker that is in no hurry."""
        claimed = self.run(claim(self.stage.pool, lease=GRACE))
        assert bool(claimed) == bool(self.world.waiting())
        for job in claimed:
            name = job.mxc.media_id
            assert name in self.world.waiting()
            self.world.due.remove(name)
            self.world.claims[name] = job.attempts
            self.jobs.append(job)

    @rule(dies=deaths)
    def fetch(self, dies: int | None) -> None:
        """A worker that takes one after another."""
        self.claim()
        if self.jobs:
            job = self.jobs.pop()
            self._do(self._came(job), lambda process: archive_one(job, process.parts), dies)

    def _fetch_all(self) -> None:
        while self.world.waiting():
            self.fetch(None)

    @rule(pick=picks, dies=deaths)
    def fetch_late(self, pick: int, dies: int | None) -> None:
        if not self.jobs:
            return
        job = self.jobs.pop(pick % len(self.jobs))
        self._do(self._came(job), lambda process: archive_one(job, process.parts), dies)

    @rule(pick=picks, waits=pauses)
    def fetch_slowly(self, pick: int, waits: int) -> None:
        if not self.jobs:
            self.claim()
        if not self.jobs:
            return
        job = self.jobs.pop(pick % len(self.jobs))
        self._begin(self._came(job), lambda process: archive_one(job, process.parts), waits)

    @rule(of=picks, more=st.integers(0, 2), recipe=st.sampled_from(STANDARD[:2]),
          dies=deaths, waits=st.one_of(st.none(), pauses))  # fmt: skip
    def make(self, of: int, more: int, recipe: Any, dies: int | None, waits: int | None) -> None:
        """A picture, which may be the same as another, or even as what it is made of."""
        kept = sorted(self.world.kept())
        if not kept:
            return
        source = kept[of % len(kept)]
        self._make(source, min(source + more, len(BODIES) - 1), recipe, dies, waits)

    def _make(
        self, source: int, made: int, recipe: Any, dies: int | None, waits: int | None
    ) -> None:
        picture = Rendered(BODIES[made], "image/png", 1, 1, 1)

        def effect(world: World) -> None:
            world.make(source, name_of(recipe), made)

        def work(process: Process) -> Awaitable[Any]:
            return process.maker.keep(DIGESTS[source], recipe, picture)

        if waits is None:
            self._do(effect, work, dies)
        else:
            self._begin(effect, work, waits)

    @rule(event=posts, pick=picks, makes=st.booleans(), waits=st.integers(1, 3))
    def store_for_days(self, event: Posted, pick: int, makes: bool, waits: int) -> None:
        """Bytes are in the store for more than a day before their worker records them. Where an
        old copy lay there already, nobody would wait for so long."""
        self.tidy(later=True, dies=None)
        if not self._stored() <= self.world.kept():
            self.sweep(None)
            self.tidy(later=True, dies=None)
        kept = sorted(self.world.kept())
        others = [number for number in range(len(BODIES)) if number not in kept]
        if makes and kept and others:
            source, made = kept[pick % len(kept)], others[-1 - pick % 2 * (len(others) > 1)]
            self._make(source, made, STANDARD[2], None, waits)
        else:
            self._post(replace(event, names=(self._alive(event.names[0]),)))
            self.fetch_slowly(pick, waits)
        self.sweep(None)
        self.run(self.stage.stored_later())
        self.tidy(later=False, dies=None)
        self._end_all()

    def _stored(self) -> set[int]:
        return {*self.stage.files(), *self.stage.files("former")}

    def _came(self, job: Job) -> Callable[[World], None]:
        return lambda world: world.came(job.mxc.media_id, job.attempts)

    # What people want.

    def _target(self, kind: str, pick: int) -> Said | None:
        of: dict[str, list[Any]] = {
            "mxc": sorted(self.world.fates),
            "event": sorted(self.world.events),
            "user": USERS,
            "room": ROOMS,
            "hash": list(range(len(BODIES))),
            "span": sorted(SPANS),
        }
        found = of[kind]
        return Said(kind, found[pick % len(found)]) if found else None

    @rule(kind=st.sampled_from(HOLDS), pick=picks)
    def hold(self, kind: str, pick: int) -> None:
        if target := self._target(kind, pick):
            self._place(target)

    @rule(kind=st.sampled_from(HOLDS), event=posts)
    def hold_what_is_old(self, kind: str, event: Posted) -> None:
        """In one of the ways, before a rule lets it go."""
        name = self._alive(event.names[0])
        key = self._post(replace(event, names=(name,), days=100, pushed=False))
        self._fetch_all()
        body = self.world.fates[name].body
        of = {"mxc": name, "event": key, "user": event.sender, "room": event.room, "hash": body}
        value = of.get(kind, "long ago")
        if value is not None:
            self._place(Said(kind, value))
            self.expire(None)
            self._release(Said(kind, value))

    def _place(self, target: Said) -> None:
        if target not in self.world.holds:
            self.run(self._hold(target))
            self.world.holds.add(target)
        self._compare(self.world)

    def _release(self, target: Said) -> None:
        self.run(self._hold(target, ends=True))
        self.world.holds.remove(target)

    @rule(pick=picks)
    def end_hold(self, pick: int) -> None:
        if not self.world.holds:
            return
        self._release(sorted(self.world.holds, key=str)[pick % len(self.world.holds)])

    async def _hold(self, target: Said, *, ends: bool = False) -> None:
        async with self.stage.pool.acquire() as conn:
            if ends:
                await holds.release(conn, text_of(target))
            else:
                await holds.place(conn, text_of(target), "a case", "shell:root")

    @rule(kind=st.sampled_from(["mxc", "event", "user", "room", "hash"]), pick=picks,
          gives_back=st.booleans(), dies=deaths)  # fmt: skip
    def hide(self, kind: str, pick: int, gives_back: bool, dies: int | None) -> None:
        target = self._target(kind, pick)
        if target is None:
            return
        meant, said = Target(kind, text_of(target)), target

        def effect(world: World) -> None:
            (world.give_back if gives_back else world.set_aside)(said)

        def work(process: Process) -> Awaitable[None]:
            if gives_back:
                return through(release(process.pool, meant, ADMIN))
            return through(quarantine(process.pool, meant, "", ADMIN))

        self._do(effect, work, dies)

    @rule(kind=st.sampled_from(["mxc", "event", "event", "user", "room"]), pick=picks, dies=deaths)
    def erase(self, kind: str, pick: int, dies: int | None) -> None:
        target = self._target(kind, pick)
        if target is not None:
            meant, said = Target(kind, text_of(target)), target
            self._do(
                lambda world: world.erase(said),
                lambda process: through(Erasure(process.pool, meant, ADMIN).run()),
                dies,
            )

    # What the archive does by itself.

    @rule(dies=deaths)
    def expire(self, dies: int | None) -> None:
        self._retain(World.expire, EXPIRING, dies)

    @rule(pick=picks, event=posts, dies=deaths)
    def expire_unread(self, pick: int, event: Posted, dies: int | None) -> None:
        """Somebody reads one media now and then, and nobody any other."""
        name = self._ready(pick, event)
        for _ in range(UNREAD):
            self.run(self.stage.read(name))
            self.world.read(name)
            self.a_while_later()
        self._retain(World.expire_unread, UNREAD_EXPIRING, dies)

    def _retain(
        self, effect: Callable[[World], None], rules: list[Rule], dies: int | None
    ) -> None:
        self._do(
            effect,
            lambda process: through(Retention(process.pool, rules, SERVER).run(OURSELVES)),
            dies,
        )

    @rule(later=st.booleans(), dies=deaths)
    def tidy(self, later: bool, dies: int | None) -> None:
        if later:
            self.a_while_later()
        self._do(World.tidy, self.stage.tidy, dies)

    @rule(dies=deaths)
    def sweep(self, dies: int | None) -> None:
        self._do(nothing, self.stage.sweep, dies)

    @rule(waits=pauses)
    def sweep_slowly(self, waits: int) -> None:
        self._begin(nothing, self.stage.sweep, waits)

    @rule(event=posts, dies=st.one_of(st.none(), st.integers(2, 3)))
    def change_stores(self, event: Posted, dies: int | None) -> None:
        """In the one of before may be what nobody has recorded."""
        self._end_all()
        self._post(event)
        self.fetch(dies)
        self.run(self.stage.change_stores())

    @rule(to=st.sampled_from(MOVES), dies=deaths)
    def move(self, to: str, dies: int | None) -> None:
        self._do(nothing, lambda process: self._move(process, to), dies)

    @rule(to=st.sampled_from(MOVES), waits=pauses)
    def move_slowly(self, to: str, waits: int) -> None:
        self._begin(nothing, lambda process: self._move(process, to), waits)

    async def _move(self, process: Process, to: str) -> None:
        mover = Mover(process.pool, process.store, process.parts.spool, ADMIN)
        if to == "inline":
            await through(mover.to_inline(ALL))
        elif to == "objects":
            await through(mover.to_objects(ALL))
        elif process.store.former_name:
            await through(mover.from_former(process.store.former_name, ALL))

    @rule()
    def a_while_later(self) -> None:
        """Longer than anything is under way."""
        self._end_all()
        self.run(self.stage.a_while_later())
        self.world.a_day_later()
        self._compare(self.world)

    @rule(pick=picks, gone=st.booleans())
    def damage(self, pick: int, gone: bool) -> None:
        """Bytes of a media become others, and are fetched again."""
        self._end_all()
        found = sorted({f.body for f in self.world.fates.values() if f.body is not None})
        if found:
            self.run(self._damage_and_mend(found[pick % len(found)], gone=gone))
        self._compare(self.world)

    async def _damage_and_mend(self, number: int, *, gone: bool) -> None:
        stage, digest = self.stage, DIGESTS[number]
        blob = (await stage.blobs())[number]
        if blob.place is Place.INLINE:
            sql = "UPDATE blob_data SET data = 'other' WHERE sha256 = $1"
            await stage.pool.execute(sql, digest)
        for files in (stage.files(), stage.files("former")):
            if blob.place is Place.OBJECT and number in files:
                if gone:
                    files[number].unlink()
                else:
                    files[number].write_bytes(b"?" * blob.size)
        found = await Verifier(stage.pool, stage.parts.store, ADMIN).check([blob])
        assert [one.sha256 for one in found.findings] == [digest]
        repairer = Repairer(stage.pool, stage.parts.store, stage.parts.spool, again(stage.parts))
        while await repairer.work():
            pass

    # How it is done, and looked at.

    @rule(pick=picks)
    def go_on(self, pick: int) -> None:
        if not self.paused:
            return
        task, process, effect = self.paused.pop(pick % len(self.paused))
        process.steps.go_on()
        done = self.run(self._ended(task))
        after = self.world.copy()
        effect(after)
        self._compare(after, surely=done)

    def _end_all(self) -> None:
        while self.paused:
            self.go_on(0)

    def _do(
        self,
        effect: Callable[[World], None],
        work: Callable[[Process], Awaitable[Any]],
        dies: int | None,
    ) -> None:
        after = self.world.copy()
        effect(after)
        done = self.run(self._ended(work(Process(self.stage, dies=dies))))
        self._compare(after, surely=done)

    def _begin(
        self,
        effect: Callable[[World], None],
        work: Callable[[Process], Awaitable[Any]],
        waits: int,
    ) -> None:
        after = self.world.copy()
        effect(after)
        process = Process(self.stage, waits=waits)
        task = self.run(self._until_held_up(work(process), process))
        if task is None:
            self._compare(after)
            return
        had = self.world
        self._compare(after, surely=False)
        done = self.world.facts() == after.facts() != had.facts()
        self.paused.append(Paused(task, process, nothing if done else effect))

    async def _until_held_up(
        self, work: Awaitable[Any], process: Process
    ) -> asyncio.Task[bool] | None:
        task = asyncio.create_task(self._ended(work))
        waiting = asyncio.create_task(process.steps.waiting.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not task.done():
            return task
        await task
        return None

    async def _ended(self, work: Awaitable[Any]) -> bool:
        """False: it died, or has to begin anew, which is the same to everybody else."""
        try:
            await work
        except (Died, asyncpg.ForeignKeyViolationError):
            return False
        return True

    def _compare(self, after: World, *, surely: bool = True) -> None:
        seen = self.run(self.stage.facts())
        if surely:
            assert seen == after.facts()
            self.world = after
        else:
            self.world = self.world.between(after, seen)

    @invariant()
    def nothing_is_lost_and_nothing_comes_back(self) -> None:
        self.run(self._look())
        self.sound = True

    async def _look(self) -> None:
        assert set(await self.stage.blobs()) == self.world.kept()
        assert await self.stage.torn() == []
        await self.stage.hear()
        now = {name: (fate, self.world.is_hidden(name)) for name, fate in self.world.fates.items()}
        for name in now:
            if self.looked.get(name) != now[name]:
                await self._read(name)
        self.looked = now

    async def _read(self, name: str) -> None:
        """Twice, because what is read once is kept in memory."""
        (state, body, _), hidden = self.world.fates[name], self.world.is_hidden(name)
        path = f"{MATRIX}/{SERVER}/{name}"
        there = state in ("ready", "quarantined") and body is not None
        shown = state == "ready" and not hidden
        for reader, query, may in (
            (self.stage.reader, "", shown),
            (self.stage.reader, "?hidden=true", shown),
            (self.stage.admin, "", shown),
            (self.stage.admin, "?hidden=true", there),
        ):
            async with reader.ask(path + query) as answer:
                found = await answer.read()
                right = answer.status == 200 and found == BODIES[body or 0]
                waits = (504,) if state == "pending" else ()
                assert right if may else answer.status in (404, *waits), (name, answer.status)

    def teardown(self) -> None:
        sound = self.sound
        try:
            if sound:
                self._look_at_the_end()
        finally:
            self.run(self._stop())

    def _look_at_the_end(self) -> None:
        """All that was to go has gone, and nothing else is there."""
        self._end_all()
        self.move("from the former store", None)
        for _ in range(2):
            self.tidy(later=True, dies=None)
            self.sweep(None)
        self.looked = {}
        self.nothing_is_lost_and_nothing_comes_back()
        self.run(self._nothing_is_left_over())

    async def _nothing_is_left_over(self) -> None:
        blobs = await self.stage.blobs()
        inline = {number for number, blob in blobs.items() if blob.place is Place.INLINE}
        assert set(self.stage.files()) == set(blobs) - inline
        assert self.stage.files("former") == {}
        assert await self.stage.inline() == inline
        for table in ("garbage", "leftover"):
            assert await self.stage.pool.fetch(f"SELECT * FROM {table}") == []  # noqa: S608  # ours

    async def _stop(self) -> None:
        for task, _, _ in self.paused:
            task.cancel()
        await asyncio.gather(*(paused.task for paused in self.paused), return_exceptions=True)


def test_whatever_happens(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No referenced byte is lost, no deleted byte is served, and no orphan outlives the sweep."""
    # That we look at everything all the time is not to count as reading it.
    monkeypatch.setattr("archiver.serve.usage.FLUSH_SECONDS", 1e6)
    # Hypothesis has no setting for it. Who wants the shortest of all ways waits longer.
    monkeypatch.setattr(SHRINKING, SHRINK_SECONDS, raising=False)
    how = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize="ARCHIVER_TEST_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    with asyncio.Runner() as runner:
        url = runner.run(postgres_server.create_migrated())
        stack = AsyncExitStack()
        try:
            stage = runner.run(stack.enter_async_context(rehearsing(url, tmp_path)))

            class OnStage(Machine):
                def __init__(self) -> None:
                    super().__init__(runner, stage)

            run_state_machine_as_test(OnStage, settings=how)
        finally:
            runner.run(stack.aclose())
            runner.run(postgres_server.drop(url))
