"""Conditional and partial requests, as RFC 9110 has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from archiver.serve.conditional import RangeNotSatisfiable, Span, is_known, wanted

ETAG = '"abc"'


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    """What a request brings."""
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize(
    ("value", "known"),
    [
        ('"abc"', True),
        ('W/"abc"', True),
        ('"x", "abc"', True),
        ('"x" , W/"y",W/"abc"', True),
        ("*", True),
        (" * ", True),
        ('"x,abc"', False),
        ("abc", False),
        ('"ABC"', False),
        ("", False),
    ],
)
def test_if_none_match_compares_weakly(value: str, known: bool) -> None:
    """A list, a star and weak tags match; another tag and what is no tag do not."""
    assert is_known(headers(("If-None-Match", value)), ETAG) is known


def test_if_none_match_may_come_in_several_lines() -> None:
    """Lines of the same header are one list."""
    assert is_known(headers(("If-None-Match", '"x"'), ("If-None-Match", '"abc"')), ETAG)


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("bytes=0-", Span(0, 100)),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=10-19", Span(10, 20)),
        ("bytes=90-1000", Span(90, 100)),
        ("bytes=-1", Span(99, 100)),
        ("bytes=-1000", Span(0, 100)),
        ("Bytes = 1-2", Span(1, 3)),
        ("bytes=1-2,", Span(1, 3)),
        ("bytes=20-10", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes", None),
        ("bytes=a-b", None),
        ("bytes=1", None),
        ("bytes=-1-2", None),
        ("bytes=\u0661-", None),
        ("seconds=0-1", None),
        ("bytes=" + "9" * 5000 + "-", None),
        ("", None),
    ],
)
def test_one_range_is_understood(value: str, span: Span | None) -> None:
    """One range of bytes is taken; whatever else there is means the whole."""
    assert wanted(headers(("Range", value)), ETAG, 100) == span


@pytest.mark.parametrize("value", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_past_the_end_cannot_be_satisfied(value: str) -> None:
    """It is refused with the size, so that the reader may ask again."""
    with pytest.raises(RangeNotSatisfiable) as refused:
        wanted(headers(("Range", value)), ETAG, 100)
    assert refused.value.size == 100


def test_an_empty_media_is_always_given_whole() -> None:
    """No Content-Range could describe a part of nothing."""
    assert wanted(headers(("Range", "bytes=0-")), ETAG, 0) is None


@pytest.mark.parametrize(
    ("condition", "span"),
    [
        ('"abc"', Span(0, 1)),
        ('W/"abc"', None),
        ('"x"', None),
        ("Sat, 29 Oct 1994 19:43:31 GMT", None),
    ],
)
def test_if_range_compares_strongly(condition: str, span: Span | None) -> None:
    """The part is given only of exactly these bytes; a date never names them."""
    assert wanted(headers(("Range", "bytes=0-0"), ("If-Range", condition)), ETAG, 100) == span


def test_two_range_headers_mean_the_whole() -> None:
    """They are several ranges."""
    assert wanted(headers(("Range", "bytes=0-1"), ("Range", "bytes=5-6")), ETAG, 100) is None


@given(st.text(max_size=30), st.integers(0, 1000))
def test_no_range_header_can_do_harm(value: str, size: int) -> None:
    """Any text gives a part that lies inside, the whole, or a refusal."""
    try:
        span = wanted(headers(("Range", f"bytes={value}")), ETAG, size)
    except RangeNotSatisfiable:
        return
    assert span is None or 0 <= span.start < span.stop <= size
