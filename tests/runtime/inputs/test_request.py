"""Long requests are refused by their lengths alone, before the long work."""

import dataclasses
import io
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vlmedge.runtime.bundle.manifest import PixelBudget, VisionSpec
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import ContextLengthError, ImageError, PromptError
from vlmedge.runtime.inputs import asked_size
from vlmedge.runtime.inputs import request as request_module
from vlmedge.runtime.inputs.images import open_image, read_size
from vlmedge.runtime.inputs.messages import MAX_PARTS, MAX_TEXT_CHARS, read_messages
from vlmedge.runtime.inputs.patches import count_visual_tokens, make_image_input, make_video_input
from vlmedge.runtime.inputs.request import RequestMaker

VISION = VisionSpec(32, 1280, 16, 14, 2, 2)
PIXELS = PixelBudget(3136, 50176, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def maker(tiny):
    manifest = read_manifest(tiny.bundle)
    decoder = dataclasses.replace(manifest.decoder, max_position_embeddings=200)
    return RequestMaker(tiny.bundle, dataclasses.replace(manifest, decoder=decoder), None)


@pytest.fixture
def never_decoded(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("was decoded")

    monkeypatch.setattr(asked_size, "open_image", fail)
    monkeypatch.setattr(request_module, "Frames", fail)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)


def make_file(width, height, kind="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind, **options)
    return file.getvalue()


def ask(*parts, text="?"):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    num_frames=st.none() | st.integers(1, 8),
    low=st.none() | st.integers(1, 60_000),
    high=st.none() | st.integers(1, 60_000),
)
@settings(max_examples=150, deadline=None)
def test_tokens_are_counted_as_the_picture_is_cut(height, width, num_frames, low, high):
    limits = {"min_pixels": low, "max_pixels": high}
    picture = np.zeros((height, width, 3), np.uint8)

    def run(function):
        try:
            return function()
        except ValueError as error:
            return str(error)

    counted = run(
        lambda: count_visual_tokens((height, width), num_frames, PIXELS, VISION, **limits)
    )
    turned = run(lambda: count_visual_tokens((width, height), num_frames, PIXELS, VISION, **limits))
    if num_frames is None:
        made = run(lambda: make_image_input(picture, PIXELS, VISION, **limits).num_tokens)
    else:
        frames = [picture] * num_frames
        made = run(lambda: make_video_input(frames, PIXELS, VISION, **limits).num_tokens)
    assert counted == made
    assert isinstance(turned, str) or turned == made


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_the_header_has_the_size_of_the_picture(kind, tmp_path):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    data = make_file(60, 40, kind)
    (tmp_path / "picture").write_bytes(data)
    picture = np.asarray(open_image(data))
    for source in (data, tmp_path / "picture", str(tmp_path / "picture"), picture):
        assert read_size(source) == (40, 60)
    assert read_size(Image.open(io.BytesIO(data))) == (40, 60)


def test_reading_a_size_refuses_what_opening_refuses(tmp_path):
    big = make_file(300, 300)
    for source in (b"no picture", tmp_path / "missing.png", "https://x/y.png"):
        with pytest.raises(ImageError):
            read_size(source)
    for source in (big, np.zeros((300, 300, 3), np.uint8), Image.new("RGB", (300, 300))):
        with pytest.raises(ImageError, match="300x300"):
            read_size(source, max_source_pixels=1000)
    with pytest.raises(ValueError, match="channels last"):
        read_size(np.zeros((3, 30, 30), np.uint8))
    with pytest.raises(TypeError, match="set"):
        read_size(set())


def test_too_many_pictures_are_refused_by_their_headers(maker, never_decoded):
    part = {"type": "image", "image": make_file(56, 56)}  # 4 tokens
    with (
        mock.patch.object(request_module, "read_size", wraps=read_size) as read,
        pytest.raises(ContextLengthError, match=r"first 50 of 5000 pictures .* 200 visual"),
    ):
        maker.make(ask(*[part] * 5000))
    assert read.call_count == 50


def test_a_clip_that_is_too_long_is_refused_by_its_first_frame(maker, never_decoded):
    frames = [make_file(280, 280)] * 40
    with pytest.raises(ContextLengthError, match="visual tokens"):
        maker.make(ask({"type": "video", "video": frames}))


def test_pictures_that_leave_no_room_for_the_text_are_not_decoded(maker, never_decoded):
    part = {"type": "image", "image": make_file(280, 280)}  # 100 tokens
    with pytest.raises(ContextLengthError, match="at least 259 tokens"):
        maker.make(ask(part, text="a" * 100))


def test_what_fits_exactly_is_made(maker):
    bare = len(maker.make(ask(text="")).input_ids)
    assert len(maker.tokenizer.encode_text("a" * 300)) == 300  # one token a byte
    assert len(maker.make(ask(text="a" * (199 - bare))).input_ids) == 199
    with pytest.raises(ContextLengthError):
        maker.make(ask(text="a" * (200 - bare)))


def test_a_picture_that_changes_between_header_and_pixels_is_an_error(maker, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(make_file(56, 56))

    def change(source):
        size = read_size(source)
        path.write_bytes(make_file(112, 112))
        return size

    with (
        mock.patch.object(request_module, "read_size", change),
        pytest.raises(ImageError, match="changed while it was read"),
    ):
        maker.make(ask({"type": "image", "image": str(path)}))


def test_endless_text_and_endless_parts_are_refused():
    half = "x" * (MAX_TEXT_CHARS // 2)
    with pytest.raises(PromptError, match="characters of text, at most"):
        read_messages([{"role": "user", "content": half}, *ask(text=half + "x")])
    assert read_messages([{"role": "user", "content": half}, *ask(text=half)])
    with pytest.raises(PromptError, match="messages and parts of messages, at most"):
        read_messages(ask(*[{"type": "text", "text": ""}] * MAX_PARTS))
    with pytest.raises(PromptError, match="messages and parts of messages, at most"):
        read_messages([{"role": "user", "content": ""}] * (MAX_PARTS + 1))
