"""Media in memory: never too many bytes, never what changed, and the last used stay longest."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from prometheus_client import REGISTRY

from archiver.model import Blob, Mxc, Place
from archiver.serve.hot import OVERHEAD, Entry, Hot

A, B, C = (Mxc("example.com", name) for name in "abc")


class Ear:
    """Hears, or does not."""

    def __init__(self) -> None:
        self.hears = True

    def __call__(self) -> bool:
        return self.hears


def entry(size: int = 10) -> Entry:
    return Entry(Blob(bytes(32), size, Place.INLINE), bytes(size), CIMultiDict())


def hot(entries: int = 2, ear: Ear | None = None, keep: float = 60) -> Hot:
    """Room for so many entries, with a name or two."""
    return Hot(entries * (OVERHEAD + 10) + 100, ear or Ear(), keep)


def test_what_was_put_is_there_under_its_own_name_alone() -> None:
    """Of one media there may be several answers."""
    kept, one, other = hot(), entry(), entry()
    kept.put(0, one, A, "")
    kept.put(0, other, A, "cat.jpg")
    assert kept.get(A, "") is one
    assert kept.get(A, "cat.jpg") is other
    assert kept.get(A, "dog.jpg") is None
    assert kept.get(B, "") is None


def test_the_least_recently_used_makes_room() -> None:
    """Being asked for counts as use."""
    kept = hot()
    kept.put(0, entry(), A, "")
    kept.put(0, entry(), B, "")
    assert kept.get(A, "")
    kept.put(0, entry(), C, "")
    assert [bool(kept.get(mxc, "")) for mxc in (A, B, C)] == [True, False, True]


def test_what_is_too_large_or_lacks_bytes_is_not_kept() -> None:
    """Nor does it push out anything."""
    kept = hot()
    kept.put(0, entry(), A, "")
    kept.put(0, entry(3 * OVERHEAD), B, "")
    kept.put(0, entry()._replace(data=b"short"), C, "")
    assert [bool(kept.get(mxc, "")) for mxc in (A, B, C)] == [True, False, False]


def test_a_change_drops_every_answer_of_its_media() -> None:
    """And of no other."""
    kept = hot(3)
    kept.put(0, entry(), A, "")
    kept.put(0, entry(), A, "cat.jpg")
    kept.put(0, entry(), B, "")
    kept.changed("example.com/a")
    assert kept.get(A, "") is None
    assert kept.get(A, "cat.jpg") is None
    assert kept.get(B, "") is not None
    kept.changed(None)
    assert kept.get(B, "") is None


def test_what_was_looked_up_before_a_change_is_not_kept() -> None:
    """Whichever media changed: it may have been this one."""
    for name in ("example.com/a", "example.com/b", "no such thing", None):
        kept = hot()
        before = kept.changes
        kept.changed(name)
        kept.put(before, entry(), A, "")
        assert kept.get(A, "") is None
        kept.put(kept.changes, entry(), A, "")
        assert kept.get(A, "") is not None


def test_who_does_not_hear_of_changes_neither_keeps_nor_gives() -> None:
    """Once it hears again, it has to be told that anything may have changed."""
    ear = Ear()
    kept = hot(ear=ear)
    kept.put(0, entry(), A, "")
    ear.hears = False
    assert kept.get(A, "") is None
    kept.put(0, entry(), B, "")
    ear.hears = True
    assert kept.get(B, "") is None
    assert kept.get(A, "") is not None


def test_nothing_stays_for_ever() -> None:
    """What no trigger tells is seen after a while."""
    kept = hot(keep=0)
    kept.put(0, entry(), A, "")
    assert REGISTRY.get_sample_value("archiver_hot_entries") == 1
    assert kept.get(A, "") is None
    assert REGISTRY.get_sample_value("archiver_hot_entries") == 0


def test_a_long_name_takes_room_too() -> None:
    """Whoever asks chooses it."""
    kept = hot()
    kept.put(0, entry(), A, "x" * OVERHEAD)
    assert kept.get(A, "x" * OVERHEAD) is None


def test_without_room_nothing_is_kept() -> None:
    """It is off."""
    kept = Hot(0, Ear())
    kept.put(0, entry(0), A, "")
    assert kept.get(A, "") is None


names = st.sampled_from("abcdef")
steps = st.one_of(
    st.tuples(st.just("put"), names, st.sampled_from(["", "x"]), st.integers(0, 5000)),
    st.tuples(st.just("get"), names, st.sampled_from(["", "x"]), st.none()),
    st.tuples(st.just("changed"), st.one_of(st.none(), names), st.none(), st.none()),
)


@given(st.lists(steps, max_size=60), st.integers(0, 20_000))
def test_it_holds_what_a_plain_list_would(
    done: list[tuple[str, str | None, str | None, int | None]], capacity: int
) -> None:
    """After any steps: the same entries as a model's, and never more bytes than allowed."""
    kept, model = Hot(capacity, Ear()), OrderedDict[tuple[str, str], int]()
    for step, name, what, size in done:
        if step == "changed":
            kept.changed(name and f"example.com/{name}")
            for key in [key for key in model if name in (None, key[0])]:
                del model[key]
            continue
        assert name is not None
        assert what is not None
        mxc, key = Mxc("example.com", name), (name, what)
        if size is None:
            assert bool(kept.get(mxc, what)) == (key in model)
            if key in model:
                model.move_to_end(key)
        else:
            kept.put(kept.changes, entry(size), mxc, what)
            needed = size + OVERHEAD + 4 * len(what)
            if needed <= capacity:
                model.pop(key, None)
                model[key] = needed
                while sum(model.values()) > capacity:
                    model.popitem(last=False)
                held = REGISTRY.get_sample_value("archiver_hot_bytes")
                assert held == sum(model.values())
    for name, what in model:
        assert kept.get(Mxc("example.com", name), what)
