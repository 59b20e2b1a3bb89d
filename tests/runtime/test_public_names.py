"""What a caller catches, annotates with and passes: exported, alike in every method, documented."""

import dataclasses
import inspect
import io
import json
import tempfile
import typing

import numpy as np
import pytest
from PIL import Image

import vlmedge.runtime
from vlmedge.runtime import (
    Answer,
    AnswerStream,
    GenerationOptions,
    ImageError,
    Model,
    PromptError,
    Timings,
    errors,
)

METHODS = ("answer", "chat", "stream", "chat_batch")
OPTIONS = GenerationOptions(max_new_tokens=4, ignore_eos=True)
LEVELS = np.random.default_rng(0).integers(0, 256, (84, 112, 3), np.uint8)


def encode(levels=LEVELS):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def walk_types(hint):
    yield hint
    for part in typing.get_args(hint):
        yield from walk_types(part)


def test_every_error_of_ours_can_be_imported_from_the_package():
    ours = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert ours <= set(vlmedge.runtime.__all__)


def test_every_type_of_a_public_signature_can_be_imported_from_the_package():
    exported = {id(getattr(vlmedge.runtime, name)) for name in vlmedge.runtime.__all__}
    functions = [getattr(Model, name) for name in (*METHODS, "load")]
    functions += [AnswerStream.read, Model.manifest] if hasattr(Model, "manifest") else []
    hints = [hint for one in functions for hint in typing.get_type_hints(one).values()]
    hints += [
        hint
        for record in (Answer, GenerationOptions, Timings)
        for hint in typing.get_type_hints(record).values()
    ]
    for hint in (part for whole in hints for part in walk_types(whole)):
        if getattr(hint, "__module__", "").startswith("vlmedge") and isinstance(hint, type):
            assert id(hint) in exported, hint


def test_options_and_limits_are_the_same_arguments_in_every_method():
    found = {name: inspect.signature(getattr(Model, name)).parameters for name in METHODS}
    shared = ("options", "min_pixels", "max_pixels", "add_vision_id", "cancel")
    for argument in shared:
        kinds = {(p[argument].kind, p[argument].default) for p in found.values()}
        assert len(kinds) == 1, (argument, kinds)
    positional = {
        name: [p.name for p in ps.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        for name, ps in found.items()
    }
    assert all(names[-1] == "options" for names in positional.values()), positional


def test_options_go_by_position_and_by_name(model):
    messages = [{"role": "user", "content": "What?"}]
    answers = [
        model.answer("What?", [], OPTIONS),
        model.answer("What?", options=OPTIONS),
        model.chat(messages, OPTIONS),
        model.chat(messages, options=OPTIONS),
        model.stream(messages, options=OPTIONS).read(),
        model.chat_batch([messages], options=OPTIONS)[0],
    ]
    assert {len(answer.token_ids) for answer in answers} == {4}


@pytest.mark.parametrize("method", METHODS)
def test_options_of_another_type_are_refused_by_name(model, method):
    first = {"answer": "What?", "chat_batch": [[{"role": "user", "content": "What?"}]]}
    asked = first.get(method, [{"role": "user", "content": "What?"}])
    with pytest.raises(ValueError, match="options is a dict, needed GenerationOptions"):
        getattr(model, method)(asked, options={"max_new_tokens": 4})


def test_an_answer_as_json_has_its_attributes_as_keys(model):
    answer = model.answer("What is this?", [LEVELS], OPTIONS)
    text = answer.to_json()
    assert "\n" not in text
    content = json.loads(text)
    assert list(content) == [field.name for field in dataclasses.fields(Answer)]
    assert content["token_ids"] == list(answer.token_ids)
    assert content["providers"] == list(model.providers) == ["CPUExecutionProvider"]
    assert content["timings"] == dataclasses.asdict(answer.timings)
    assert json.loads(answer.to_json(indent=2)) == content
    for name in (*content, *content["timings"]):
        assert name in (Answer.to_json.__doc__ or ""), name


class Response:
    """As urllib's and requests' are: read, and neither seek nor tell."""

    def __init__(self, content):
        self._file = io.BytesIO(content)

    def read(self, amount=-1):
        return self._file.read(min(amount, 100) if amount > 0 else amount)  # as it arrives


def open_spooled(content):
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def open_file(content, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(content)
    return path.open("rb")


@pytest.mark.parametrize("kind", ["BytesIO", "spooled", "response", "file"])
def test_pictures_that_are_open_files_are_those_of_their_bytes(model, tmp_path, kind):
    def make(content):
        return {
            "BytesIO": lambda: io.BytesIO(content),
            "spooled": lambda: open_spooled(content),
            "response": lambda: Response(content),
            "file": lambda: open_file(content, tmp_path),
        }[kind]()

    content = encode()
    needed = model.answer("What?", [content], OPTIONS, videos=[[content] * 4])
    clip = [make(content) for _ in range(4)]
    got = model.answer("What?", [make(content)], OPTIONS, videos=[clip])
    assert got.token_ids == needed.token_ids
    assert got.num_image_tokens == needed.num_image_tokens


def test_an_open_file_is_read_from_its_position_and_stays_open(model):
    file = io.BytesIO(b"header" + encode())
    file.seek(6)
    model.answer("What?", [file], OPTIONS)
    assert not file.closed
    assert file.tell() == len(file.getvalue())
    with pytest.raises(ImageError, match="at its end"):
        model.answer("What?", [file], OPTIONS)


def test_a_file_that_gives_no_bytes_is_refused_with_what_to_do(model, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode())

    class Later:
        async def read(self, amount=-1):
            return b""

    closed = io.BytesIO(encode())
    closed.close()
    cases = (
        (io.StringIO("text"), "open it with mode 'rb'"),
        (closed, "closed"),
        (Later(), "await its"),
        (path.open("ab"), "mode 'rb'"),
    )
    for file, said in cases:
        with pytest.raises(ImageError, match=said):
            model.answer("What?", [file], OPTIONS)


def test_one_picture_where_a_list_is_needed_is_refused(model, tmp_path):
    content = encode()
    for one in (content, io.BytesIO(content), tmp_path / "a.png", LEVELS, Image.fromarray(LEVELS)):
        with pytest.raises(ValueError, match="needed a list of pictures"):
            model.answer("What?", one)
    stack = np.stack([LEVELS, LEVELS])
    assert model.answer("What?", stack, OPTIONS).num_image_tokens == 2 * 12


def test_a_prompt_error_names_the_part_whose_file_is_bad(model):
    bad = {"type": "image", "image": io.BytesIO(b"")}
    with pytest.raises(ImageError, match=r"messages\[0\] part 0"):
        model.chat([{"role": "user", "content": [bad]}])
    assert issubclass(PromptError, ValueError)
