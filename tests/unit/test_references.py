"""Which media an event names: every place in Matrix, and whatever else JSON can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.capture.references import find_references
from archiver.model import Mxc, Reference, Role

A, B, C, D, E = (f"mxc://example.com/{name}" for name in "abcde")
KEYS = {
    "v": "v2",
    "key": {"k": "aWF6", "alg": "A256CTR"},
    "iv": "w+sE15fzSc0AAAAAAAAAAA",
    "hashes": {"sha256": "fdSLu"},
}
JPEG = {"mimetype": "image/jpeg", "size": 31_037}
PNG = {"mimetype": "image/png", "size": 512}


def ref(url: str, role: Role, item: int = 0, info: Any = None, **details: Any) -> Reference:
    server_name, media_id = url.removeprefix("mxc://").split("/")
    info = info or {}
    return Reference(
        Mxc(server_name, media_id),
        role,
        item,
        declared_type=info.get("mimetype"),
        declared_size=info.get("size"),
        **details,
    )


def content(url: str, item: int = 0, info: Any = None, **details: Any) -> Reference:
    return ref(url, Role.CONTENT, item, info, **details)


def thumbnail(url: str, item: int = 0, info: Any = None, **details: Any) -> Reference:
    return ref(url, Role.THUMBNAIL, item, info, **details)


class Row(NamedTuple):
    name: str
    type: str
    content: dict[str, Any]
    expected: list[Reference]
    unsigned: dict[str, Any] | None = None


def image(url: str, thumb: str, **fields: Any) -> dict[str, Any]:
    info = {**JPEG, "thumbnail_url": thumb, "thumbnail_info": PNG}
    return {"body": "cat.jpg", "url": url, "info": info, **fields}


def message_rows() -> list[Row]:
    rows = []
    for kind in ("m.image", "m.video", "m.file", "m.audio"):
        plain = {"msgtype": kind, **image(A, B)}
        sealed = {
            "msgtype": kind,
            "body": "cat.jpg",
            "file": {"url": A, **KEYS},
            "info": {**JPEG, "thumbnail_file": {"url": B, **KEYS}, "thumbnail_info": PNG},
        }
        rows += [
            Row(
                f"{kind} url",
                "m.room.message",
                plain,
                [content(A, info=JPEG, filename="cat.jpg"), thumbnail(B, info=PNG)],
            ),
            Row(
                f"{kind} file",
                "m.room.message",
                sealed,
                [
                    content(A, info=JPEG, filename="cat.jpg", encryption=KEYS),
                    thumbnail(B, info=PNG, encryption=KEYS),
                ],
            ),
        ]
    return rows


def gallery_rows() -> list[Row]:
    items = [
        {"itemtype": "m.image", **image(A, B)},
        {
            "itemtype": "m.file",
            "body": "look",
            "filename": "d.pdf",
            "file": {"url": C, **KEYS},
            "info": {"thumbnail_url": D},
        },
        {"itemtype": "org.example.unknown", "url": E},
    ]
    expected = [
        content(A, 0, JPEG, filename="cat.jpg"),
        thumbnail(B, 0, PNG),
        content(C, 1, filename="d.pdf", caption="look", encryption=KEYS),
        thumbnail(D, 1),
        ref(E, Role.OTHER),
    ]
    return [
        Row(kind, "m.room.message", {"msgtype": kind, "body": "", "itemtypes": items}, expected)
        for kind in ("m.gallery", "dm.filament.gallery")
    ]


def pack_rows() -> list[Row]:
    images = {
        "cat": {"url": A, "info": PNG, "body": "a cat"},
        "broken": 7,
        "dog": {"url": B},
    }
    pack = {"images": images, "pack": {"avatar_url": C}}
    expected = [
        ref(A, Role.PACK_IMAGE, 0, PNG, caption="a cat"),
        ref(B, Role.PACK_IMAGE, 2, caption="dog"),
        ref(C, Role.AVATAR),
    ]
    return [
        Row(kind, kind, pack, expected) for kind in ("m.room.image_pack", "im.ponies.room_emotes")
    ]


def preview_rows() -> list[Row]:
    return [
        Row(
            f"{key} {file_key}",
            "m.room.message",
            {
                "msgtype": "m.text",
                key: [
                    {"og:image": A, "og:image:type": "image/png", "matrix:image:size": 512},
                    {file_key: {"url": B, **KEYS}, "og:title": "B"},
                ],
            },
            [ref(A, Role.PREVIEW, 0, PNG), ref(B, Role.PREVIEW, 1, encryption=KEYS)],
        )
        for key in ("m.url_previews", "com.beeper.linkpreviews")
        for file_key in (
            "matrix:image:encrypted",
            "matrix:image:encryption",
            "beeper:image:encryption",
        )
    ]


def profile_rows() -> list[Row]:
    return [
        Row(f"{key} {name}", kind, {"body": "hi", key: {"id": "x", **avatar}}, [expected])
        for key in ("m.per_message_profile", "com.beeper.per_message_profile")
        for kind in ("m.room.message", "m.poll.start")
        for name, avatar, expected in (
            ("avatar_url", {"avatar_url": A}, ref(A, Role.AVATAR)),
            (
                "avatar_file",
                {"avatar_file": {"url": A, **KEYS}},
                ref(A, Role.AVATAR, encryption=KEYS),
            ),
        )
    ]


def extensible_rows() -> list[Row]:
    rows = []
    stable = ["m.file", "m.image", "m.video", "m.audio", "m.voice"]
    unstable = [f"org.matrix.msc1767.{kind}" for kind in ("file", "image", "video", "audio")]
    for kind in (*stable, *unstable, "org.matrix.msc3245.voice.v2", "m.room.message"):
        prefix = "m." if kind in stable else "org.matrix.msc1767."
        file, thumb, text = f"{prefix}file", f"{prefix}thumbnail", f"{prefix}text"
        for url_key in ("url", "uri"):
            block = {url_key: A, "name": "cat.jpg", **JPEG, **KEYS}
            body = {
                file: block,
                thumb: [{file: {url_key: B, **PNG}, "m.image": {}}, {url_key: C, **PNG}],
                text: [{"body": "<b>cat</b>", "mimetype": "text/html"}, {"body": "a cat"}],
            }
            expected = [
                content(A, info=JPEG, filename="cat.jpg", caption="a cat", encryption=KEYS),
                thumbnail(B, info=PNG),
                thumbnail(C, info=PNG),
            ]
            rows.append(Row(f"{kind} {url_key}", kind, body, expected))
    return rows


EMOTE = '<img data-mx-emoticon alt=":>" title=":cat:" height="32" src="{}" />'
ROWS = [
    *message_rows(),
    Row(
        "m.audio voice",
        "m.room.message",
        {
            "msgtype": "m.audio",
            "body": "Voice message",
            "url": A,
            "org.matrix.msc3245.voice": {},
            "org.matrix.msc1767.file": {"url": A, "name": "Voice message.ogg"},
        },
        [content(A, filename="Voice message")],
    ),
    Row(
        "m.location",
        "m.room.message",
        {"msgtype": "m.location", "info": {"thumbnail_url": A, "thumbnail_info": PNG}},
        [thumbnail(A, info=PNG)],
    ),
    Row(
        "m.location encrypted",
        "m.room.message",
        {"msgtype": "m.location", "info": {"thumbnail_file": {"url": A, **KEYS}}},
        [thumbnail(A, encryption=KEYS)],
    ),
    Row(
        "m.sticker",
        "m.sticker",
        image(A, B, body="a cat"),
        [ref(A, Role.STICKER, info=JPEG, caption="a cat"), thumbnail(B, info=PNG)],
    ),
    Row(
        "m.sticker file",
        "m.sticker",
        {"body": "a cat", "file": {"url": A, **KEYS}, "info": {"thumbnail_file": {"url": B}}},
        [ref(A, Role.STICKER, caption="a cat", encryption=KEYS), thumbnail(B)],
    ),
    Row(
        "edit",
        "m.room.message",
        {
            "msgtype": "m.image",
            "m.relates_to": {"rel_type": "m.replace", "event_id": "$original"},
            "m.new_content": {"msgtype": "m.image", **image(A, B)},
            **image(C, D, body="* cat.jpg"),
        },
        [
            content(A, info=JPEG, filename="cat.jpg"),
            thumbnail(B, info=PNG),
            content(C, info=JPEG, filename="* cat.jpg"),
            thumbnail(D, info=PNG),
        ],
    ),
    Row(
        "edit of emoticons, previews and profile",
        "m.room.message",
        {
            "msgtype": "m.text",
            "m.new_content": {
                "msgtype": "m.text",
                "formatted_body": EMOTE.format(A),
                "m.url_previews": [{"og:image": B}],
                "m.per_message_profile": {"avatar_url": C},
            },
        },
        [ref(A, Role.EMOTICON), ref(B, Role.PREVIEW), ref(C, Role.AVATAR)],
    ),
    *gallery_rows(),
    Row(
        "inline emoticons",
        "m.room.message",
        {
            "msgtype": "m.text",
            "body": ":cat: :dog:",
            "formatted_body": f"{EMOTE.format(A)} &amp; <IMG SRC='{B}'> <a href='{C}'>x</a>",
        },
        [ref(A, Role.EMOTICON), ref(B, Role.EMOTICON), ref(C, Role.OTHER)],
    ),
    Row(
        "spoiler fallback",
        "m.room.message",
        {"msgtype": "m.text", "body": f"[Spoiler]({A}) and [why]({B})"},
        [ref(A, Role.OTHER), ref(B, Role.OTHER)],
    ),
    *pack_rows(),
    Row(
        "reaction",
        "m.reaction",
        {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$e", "key": A}},
        [ref(A, Role.EMOTICON)],
    ),
    *preview_rows(),
    *profile_rows(),
    Row(
        "m.room.avatar",
        "m.room.avatar",
        image(A, B),
        [ref(A, Role.AVATAR, info=JPEG), thumbnail(B, info=PNG)],
    ),
    Row(
        "m.room.member",
        "m.room.member",
        {"membership": "join", "avatar_url": A},
        [ref(A, Role.AVATAR), ref(B, Role.AVATAR)],
        {"prev_content": {"membership": "join", "avatar_url": B}},
    ),
    *extensible_rows(),
    *(
        Row(kind, kind, {kind: {"question": {"m.text": "?"}, "answers": []}}, [])
        for poll in ("start", "response", "end")
        for kind in (f"m.poll.{poll}", f"org.matrix.msc3381.poll.{poll}")
    ),
    Row("m.room.encrypted", "m.room.encrypted", {"ciphertext": "AwgAEn", "session_id": "s"}, []),
    Row("m.room.redaction", "m.room.redaction", {"redacts": "$e"}, []),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.type} {row.name}")
def test_every_place_has_its_role(row: Row) -> None:
    """Each place of the table gives its media with its role, names and declarations."""
    event = {"type": row.type, "content": row.content, "unsigned": row.unsigned or {}}
    assert find_references(event) == (row.expected, 0)


@pytest.mark.parametrize(
    ("fields", "filename", "caption"),
    [
        ({"body": "a.png"}, "a.png", None),
        ({"body": "a.png", "filename": "a.png"}, "a.png", None),
        ({"body": "look!", "filename": "a.png"}, "a.png", "look!"),
        ({"body": "a.png", "filename": 7}, "a.png", None),
        ({"body": "a.png", "filename": ""}, "a.png", None),
        ({"body": ["x"], "filename": "a.png"}, "a.png", None),
        ({"body": {}}, None, None),
        ({}, None, None),
        ({"body": "x\0y\ud800", "filename": "\0"}, "\ufffd", "x\ufffdy\ufffd"),
        ({"body": "b" * 5_000, "filename": "f" * 5_000}, "f" * 1_024, "b" * 4_096),
    ],
)
def test_filename_and_caption(
    fields: dict[str, Any], filename: str | None, caption: str | None
) -> None:
    """A body beside another filename is a caption; both are cut and fit for PostgreSQL."""
    event = {"type": "m.room.message", "content": {"msgtype": "m.file", "url": A, **fields}}
    assert find_references(event).references == [content(A, filename=filename, caption=caption)]


@pytest.mark.parametrize(
    ("block", "caption"),
    [
        ({"m.caption": {"m.text": [{"body": "hi"}]}}, "hi"),
        ({"org.matrix.msc1767.caption": {"org.matrix.msc1767.text": "hi"}}, "hi"),
        ({"m.caption": [{"m.text": "hi"}]}, "hi"),
        ({"m.caption": {"m.text": "hi"}, "m.text": "fallback"}, "hi"),
        ({"m.text": "a.png"}, None),
        ({"m.caption": [[[[[["hi"]]]]]]}, None),
        ({"m.caption": []}, None),
        ({"m.caption": 7}, None),
    ],
)
def test_extensible_captions(block: dict[str, Any], caption: str | None) -> None:
    """An extensible event's caption is read in the shapes its drafts gave it."""
    event = {"type": "m.file", "content": {"m.file": {"url": A, "name": "a.png"}, **block}}
    assert find_references(event).references == [content(A, filename="a.png", caption=caption)]


@pytest.mark.parametrize("size", [True, -1, 2**63, 1.5, "1", None, [1]])
def test_a_size_that_is_no_size_is_left_out(size: Any) -> None:
    """Only an integer that fits into a bigint is a declared size."""
    info = {"size": size, "mimetype": ["image/png"]}
    event = {"type": "m.room.avatar", "content": {"url": A, "info": info}}
    assert find_references(event).references == [ref(A, Role.AVATAR)]


@pytest.mark.parametrize("size", [0, 2**63 - 1])
def test_declarations_at_their_limits_are_kept(size: int) -> None:
    """The smallest and the largest size are kept, and a type is cut to 255 characters."""
    info = {"size": size, "mimetype": "x" * 300}
    event = {"type": "m.room.avatar", "content": {"url": A, "info": info}}
    kept = {"size": size, "mimetype": "x" * 255}
    assert find_references(event).references == [ref(A, Role.AVATAR, info=kept)]


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (f"{A}?width=1#x", [A]),
        (f'"{A}"', [A]),
        (f"x{A} y{B},{C}", [A, B, C]),
        (f"mxc://example.com/{A}", ["mxc://example.com/mxc", A]),
        (f"mxc://{A}", [A]),
        ("mxc://[2001:db8::1]:8448/a_-", ["mxc://[2001:db8::1]:8448/a_-"]),
        ("mxc://h:1/" + "a" * 255, ["mxc://h:1/" + "a" * 255]),
        (A.upper(), []),
        (A.replace("mxc://", "MXC://"), []),
    ],
)
@pytest.mark.parametrize("place", ["value", "key"])
def test_an_mxc_is_found_inside_text(text: str, urls: list[str], place: str) -> None:
    """Each mxc in a string or a key is found, cut to what the grammar allows."""
    event = {"type": 7, "content": [text if place == "value" else {text: 1}]}
    assert find_references(event) == ([ref(url, Role.OTHER) for url in urls], 0)


@pytest.mark.parametrize(
    "text",
    [
        "mxc://",
        "mxc:///a",
        "mxc://example.com",
        "mxc://ex ample/a",
        "mxc://../a",
        "mxc://a/é",
        "mxc://" + "a" * 256 + "/a",
        "mxc://h:1/" + "a" * 256,
        "mxc://" + "a" * 255 + ":80/a",
    ],
)
def test_what_only_looks_like_an_mxc_is_counted(text: str) -> None:
    """A string with the scheme and no valid mxc is counted once, wherever it is."""
    event = {"type": "m.room.avatar", "content": {"url": text}, text: {}, "more": f"{text} {A}"}
    assert find_references(event) == ([ref(A, Role.OTHER)], 2)


def test_the_whole_event_is_walked() -> None:
    """A media anywhere in the event is found, be it outside of its content."""
    event = {"type": "org.example", "unsigned": {"prev_content": {"x": [A]}}, "y": B}
    assert set(find_references(event).references) == {ref(A, Role.OTHER), ref(B, Role.OTHER)}


def test_one_media_in_several_roles() -> None:
    """A media is reported once a role, the first finding wins, and never again as other."""
    event = {
        "type": "m.room.message",
        "content": {
            "msgtype": "m.image",
            "body": f"a.png {A}",
            "filename": "a.png",
            "file": {"url": A, **KEYS},
            "url": A,
            "info": {"thumbnail_url": A},
        },
    }
    assert find_references(event).references == [
        content(A, filename="a.png", caption=f"a.png {A}", encryption=KEYS),
        thumbnail(A),
    ]


def test_two_media_of_one_attachment() -> None:
    """Where a sender gives both a file and a url, both are kept."""
    event = {"type": "m.sticker", "content": {"file": {"url": A, **KEYS}, "url": B}}
    assert find_references(event).references == [
        ref(A, Role.STICKER, encryption=KEYS),
        ref(B, Role.STICKER),
    ]


def test_an_encrypted_file_in_an_unknown_place_keeps_its_keys() -> None:
    """The sender's keys and hash come along although the place has no role."""
    event = {"type": "org.example", "content": {"story": {"url": A, **KEYS}}}
    assert find_references(event).references == [ref(A, Role.OTHER, encryption=KEYS)]


def test_a_message_without_media_type_has_no_content() -> None:
    """A url in a message that Matrix gives none to is kept without a role."""
    event = {"type": "m.room.message", "content": {"msgtype": "m.text", "url": A}}
    assert find_references(event).references == [ref(A, Role.OTHER)]


def test_an_index_fits_into_its_column() -> None:
    """More attachments than a smallint counts share the last index."""
    previews: list[dict[str, str]] = [{}] * 40_000 + [{"og:image": A}]
    event = {"type": "m.room.message", "content": {"m.url_previews": previews}}
    assert find_references(event).references == [ref(A, Role.PREVIEW, 32_767)]


DEPTH = 100_000


def deep(leaf: Any, *, objects: bool) -> Any:
    for _ in range(DEPTH):
        leaf = {"x": leaf} if objects else [leaf]
    return leaf


@pytest.mark.parametrize("objects", [False, True])
def test_depth_does_not_matter(objects: bool) -> None:
    """A hundred thousand levels are walked as two are, in every field that has a role."""
    fields = str.split(
        "msgtype body filename url file info m.new_content itemtypes formatted_body"
        " m.relates_to m.url_previews m.per_message_profile m.file m.thumbnail m.caption m.text"
        " images pack"
    )
    leaf = deep(A, objects=objects)
    body: dict[str, Any] = {field: deep(A, objects=objects) for field in fields}
    names = {"type": leaf, "unsigned": {"prev_content": leaf}, "content": body}
    assert find_references(names) == ([ref(A, Role.OTHER)], 0)
    twins = {"url": A, "name": deep(0, objects=False), "mimetype": leaf, "hashes": leaf}
    event = {"type": "m.file", "content": {"m.file": twins, "m.text": deep(0, objects=False)}}
    found = find_references(event).references
    assert [r.role for r in found] == [Role.CONTENT]


@pytest.mark.parametrize(
    "html",
    [
        "<img" * 16_000,
        '<img "' * 11_000,
        "<img src" * 8_000,
        "<img '\"" * 9_000,
        "<img " + "src = " * 11_000,
        "<img src" + " " * 65_000,
        "<img " + "\"'" * 32_000,
        "mxc://" * 11_000,
        ("mxc://" + "a" * 255) * 250,
    ],
    ids=str.split("tags quotes sources mixed assignments spaces alternating schemes servers"),
)
def test_hostile_html_is_read(html: str) -> None:
    """Text of Matrix's largest size hides nothing, however it tries to tire the search."""
    event = {"type": "m.room.message", "content": {"formatted_body": f"{html} {A}"}}
    assert [r.mxc for r in find_references(event).references] == [Mxc("example.com", "a")]


TYPES = st.sampled_from([*sorted({row.type for row in ROWS}), "org.example"])
FIELDS = str.split(
    "msgtype itemtype body filename formatted_body url uri file info thumbnail_url"
    " thumbnail_file thumbnail_info mimetype size hashes key iv v name m.new_content"
    " itemtypes images pack avatar_url avatar_file m.relates_to m.url_previews"
    " com.beeper.linkpreviews og:image beeper:image:encryption m.per_message_profile m.file"
    " org.matrix.msc1767.file m.thumbnail org.matrix.msc1767.thumbnail m.caption m.text"
    " type content unsigned prev_content"
)
MSGTYPES = ["m.image", "m.location", "m.gallery", "dm.filament.gallery"]
SPECIAL = ["", "\0", "\ud800", A, f"{B}?x", "mxc://", f'<img src="{C}\0">', f"{A}\0"]
TEXTS = st.one_of(st.sampled_from(SPECIAL + MSGTYPES), st.text(max_size=8))
NAMES = st.one_of(st.sampled_from(FIELDS), TEXTS)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=6)
    ),
    max_leaves=20,
)
EVENTS = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"type": st.one_of(TYPES, JSON), "content": st.dictionaries(NAMES, JSON, max_size=8)},
        optional={"unsigned": JSON, "redacts": JSON},
    ),
)
SERVERS = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.-]{0,20}(?::[0-9]{1,5})?", fullmatch=True)
MXCS = st.builds(Mxc, SERVERS, st.from_regex(r"[0-9A-Za-z_-]{1,40}", fullmatch=True))


@st.composite
def events_with(draw: st.DrawFn, mxc: Mxc) -> Any:
    """An event that holds `mxc` somewhere: in a value or a key, alone or inside a text."""
    after = draw(st.one_of(st.just(""), st.sampled_from("?#\"'/ é<\0").map(lambda c: f"{c}tail")))
    text = draw(TEXTS) + str(mxc) + after
    value: Any = draw(JSON)
    value = draw(st.sampled_from([text, [text, value], {text: value}]))
    for name in draw(st.lists(NAMES, max_size=5)):
        around = draw(st.one_of(st.none(), st.dictionaries(NAMES, SCALARS, max_size=3)))
        value = [value] if around is None else {**around, name: value}
    field = draw(st.one_of(st.just("content"), NAMES.filter(lambda name: name != "type")))
    return {"type": draw(TYPES), field: value}


@settings(max_examples=400, deadline=None)
@given(EVENTS)
def test_any_json_is_read(event: Any) -> None:
    """Whatever an event is, reading it raises nothing, repeats itself, and fits the tables."""
    found = find_references(event)
    # Compared as text: an event may hold a float that is not equal to itself.
    assert repr(found) == repr(find_references(event))
    assert found.malformed >= 0
    pairs = [(r.mxc, r.role) for r in found.references]
    assert len(pairs) == len(set(pairs))
    for reference in found.references:
        assert Mxc.checked(*reference.mxc) == reference.mxc
        for text in (reference.filename, reference.caption, reference.declared_type):
            assert text is None or ("\0" not in text and text.encode())
        assert reference.declared_size is None or 0 <= reference.declared_size < 2**63


@settings(max_examples=400, deadline=None)
@given(st.data(), MXCS)
def test_no_mxc_escapes(data: st.DataObject, mxc: Mxc) -> None:
    """A valid mxc is found wherever in an event it is, and whatever surrounds it."""
    event = data.draw(events_with(mxc))
    assert mxc in {reference.mxc for reference in find_references(event).references}
