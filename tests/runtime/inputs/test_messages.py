import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.runtime.errors import PromptError
from vlmedge.runtime.inputs.messages import (
    MediaPart,
    TextPart,
    list_ignored,
    list_media,
    read_messages,
)

PNG = b"\x89PNG"
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
IN_LINES = "data:image/png;base64,\n" + base64.encodebytes(PNG).decode()
URL_SAFE = "data:image/png;base64,__77"  # of the other alphabet, and without padding where due


def read_part(part):
    (message,) = read_messages([{"role": "user", "content": [part]}])
    return message.parts[0]


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "image": "cat.png"}, "cat.png"),
        ({"type": "image", "path": "cat.png"}, "cat.png"),
        ({"type": "image", "url": "file:///cat.png"}, "/cat.png"),
        ({"type": "image", "image": PNG}, PNG),
        ({"type": "image", "image": DATA_URL}, PNG),
        ({"type": "image", "base64": base64.b64encode(PNG).decode()}, PNG),
        ({"type": "image_url", "image_url": {"url": "cat.png"}}, "cat.png"),
        ({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "auto"}}, PNG),
        ({"type": "image_url", "image_url": "cat.png"}, "cat.png"),
        ({"type": "input_image", "image_url": DATA_URL}, PNG),
        ({"type": "image", "image": "file:///a%20cat.png"}, "/a cat.png"),
        ({"type": "image", "image": "file://localhost/cat.png"}, "/cat.png"),
        ({"type": "image", "image": "file://./cat.png"}, "./cat.png"),
        ({"type": "image", "image": IN_LINES}, PNG),
        ({"type": "image", "image": URL_SAFE}, b"\xff\xfe\xfb"),
    ],
)
def test_pictures_are_read_in_both_apis_spellings(part, source):
    assert read_part(part) == MediaPart("image", (source,))


def test_a_video_is_its_frames_in_order():
    part = {"type": "video", "video": ["1.png", DATA_URL], "max_pixels": 784}
    assert read_part(part) == MediaPart("video", ("1.png", PNG), max_pixels=784)


def test_media_are_listed_in_the_order_of_the_prompt():
    picture, text = {"type": "image", "image": "a"}, {"type": "text", "text": "x"}
    clip, other = {"type": "video", "video": ["b"]}, {"type": "image", "image": "c"}
    messages = [
        {"role": "user", "content": [picture, text]},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": [clip, other]},
    ]
    media = list_media(read_messages(messages))
    assert [part.sources for part in media] == [("a",), ("b",), ("c",)]


def test_a_string_stays_known_as_a_string():
    plain, listed = read_messages(
        [
            {"role": "user", "content": "hi"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ]
    )
    assert plain.is_plain
    assert not listed.is_plain
    assert plain.parts == listed.parts == (TextPart("hi"),)


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"type": "audio", "audio": "x"}, "audio"),
        ({"type": "image"}, "exactly one"),
        ({"type": "image", "image": None}, "exactly one"),
        ({"type": "image", "image": "a", "url": "b"}, "exactly one"),
        ({"type": "image", "image": "a", "size": 3}, "size"),
        ({"type": "image", "image": "a", "max_pixels": -1}, "max_pixels"),
        ({"type": "image", "image": "https://example.org/a.png"}, "network"),
        ({"type": "image", "image": "HTTP://example.org/a.png"}, "network"),
        ({"type": "image", "image": "file://server/a.png"}, "names the host server"),
        ({"type": "image", "image": "a", "resized_height": 56}, "needed both"),
        (
            {"type": "image", "image": "a", "resized_height": 0, "resized_width": 9},
            "resized_height",
        ),
        (
            {"type": "image", "image": "a", "resized_height": 1, "resized_width": 10**6},
            "asks for a size of 1000000x1",
        ),
        ({"type": "image", "image": "data:image/png,xx"}, "base64"),
        ({"type": "image", "image": "data:image/png;base64,!"}, "base64"),
        ({"type": "image_url", "image_url": {"uri": "a"}}, "uri"),
        ({"type": "image_url", "image_url": {}}, "no picture"),
        ({"type": "video", "video": "clip.mp4"}, "list of frames"),
        ({"type": "video", "video": []}, "at least one"),
        ({"type": "text", "text": 3}, "int"),
        ({"type": "text", "text": "\ud800"}, "Unicode"),
        ({"type": ["text"]}, "type"),
        ("hello", "str"),
    ],
)
def test_a_wrong_part_is_named_with_its_place(part, word):
    with pytest.raises(PromptError, match=word) as error:
        read_part(part)
    assert "messages[0] part 0" in str(error.value)


def test_what_changes_nothing_is_taken_and_told():
    part = {"type": "video", "video": ["1.png"], "fps": 2.0, "nframes": 4, "max_pixels": 784}
    picture = {"type": "image_url", "image_url": {"url": "a"}, "detail": "high"}
    messages = read_messages(
        [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "name": "Ann", "content": [part, picture]},
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": None},
        ]
    )
    assert [message.role for message in messages] == ["system", "user", "assistant"]
    assert messages[2].parts == (TextPart(""),)
    assert list_ignored(messages) == [
        "messages[1]: ignored, without effect on this model: name",
        "messages[1] part 0: ignored, without effect on this model: fps, nframes",
        "messages[1] part 1: ignored, without effect on this model: detail",
    ]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}, "calls of tools"),
        ({"role": "assistant", "content": "x", "audio": {"id": "x"}}, "sound"),
        ({"role": "user", "content": None}, "NoneType"),
        ({"role": "tool", "content": "x"}, "the role 'tool'"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(message, words):
    with pytest.raises(PromptError, match=words):
        read_messages([message])


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "image_url", "url"]),
            inner | st.sampled_from(["user", "text", "image", "image_url", "video"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON_LIKE)
def test_whatever_comes_as_messages_is_read_or_refused(messages):
    try:
        read_messages(messages)
    except PromptError:
        return
    assert messages
