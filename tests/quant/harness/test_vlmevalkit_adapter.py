"""A bundle behind VLMEvalKit: against the kit where it is installed, else a stand-in."""

import base64
import importlib
import importlib.util
import io
import sys
import types
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.runtime.model import Model
from vlmedge.runtime.options import GenerationOptions

MODULE = "vlmedge.quant.harness.vlmevalkit_adapter"
IS_INSTALLED = importlib.util.find_spec("vlmeval") is not None
needs_vlmeval = pytest.mark.skipif(not IS_INSTALLED, reason="VLMEvalKit is not installed")
OPTIONS = GenerationOptions(max_new_tokens=5, do_sample=False)
READER = Path(__file__).parents[3] / "samples" / "reader"
QUESTION = "Read the number."
ANSWERS = ["42", "7", "1234"]


class StandIn:
    """What the adapter uses of vlmeval.vlm.base.BaseModel."""

    def generate(self, message, dataset=None):
        return self.generate_inner(message, dataset)


@pytest.fixture
def adapter(monkeypatch):
    if IS_INSTALLED:
        yield importlib.import_module(MODULE)
        return
    for name, content in {
        "vlmeval": {},
        "vlmeval.vlm": {},
        "vlmeval.vlm.base": {"BaseModel": StandIn},
        "vlmeval.config": {"supported_VLM": {"Qwen-VL-Chat": None}},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The sample model: it reads what is written."""
    folder = tmp_path_factory.mktemp("reader") / "bundle"
    export_checkpoint(READER, folder, ExportOptions("fp32"))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in ANSWERS:
        picture = Image.new("RGB", (112, 84), "white")
        ImageDraw.Draw(picture).text((20, 20), number, fill="black", font_size=32)
        picture.save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in ANSWERS]


def test_a_question_is_answered(adapter, bundle, pictures):
    model = adapter.VlmedgeModel(str(bundle), max_new_tokens=5)
    assert model.INTERLEAVE
    got = [
        model.generate(
            [{"type": "image", "value": path}, {"type": "text", "value": QUESTION}], "DocVQA_VAL"
        )
        for path in pictures
    ]
    assert got == ANSWERS


def test_pictures_keep_their_places_between_texts(adapter, bundle, pictures):
    model = adapter.VlmedgeModel(str(bundle), max_new_tokens=5, max_pixels=3136, system_prompt="S")
    message = [
        {"type": "text", "value": "Which of"},
        {"type": "image", "value": pictures[0]},
        {"type": "text", "value": "and"},
        {"type": "image", "value": pictures[1]},
    ]
    content = [
        {"type": "text", "text": "Which of"},
        {"type": "image", "image": pictures[0]},
        {"type": "text", "text": "and"},
        {"type": "image", "image": pictures[1]},
    ]
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": content}]
    with Model.load(bundle) as runtime:
        needed = runtime.chat(turns, OPTIONS, max_pixels=3136).text
    assert model.generate(message) == needed


def test_a_conversation_keeps_its_roles(adapter, bundle, pictures):
    model = adapter.VlmedgeModel(str(bundle), max_new_tokens=5)
    parts = [{"type": "image", "value": pictures[0]}, {"type": "text", "value": "What?"}]
    kit = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "value": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "value": "Sure?"}]},
    ]
    content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "What?"}]
    ours = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    with Model.load(bundle) as runtime:
        assert model.chat_inner(kit) == runtime.chat(ours, OPTIONS).text


def test_parts_of_one_role_are_one_turn(adapter):
    parts = [
        {"type": "text", "value": "Be brief.", "role": "system"},
        {"type": "text", "value": "a"},
        {"type": "text", "value": "b", "role": "user"},
        {"type": "text", "value": "c", "role": "assistant"},
    ]
    turns = adapter.split_roles(parts, lambda path: [])
    texts = [(turn["role"], [part["text"] for part in turn["content"]]) for turn in turns]
    assert texts == [("system", ["Be brief."]), ("user", ["a", "b"]), ("assistant", ["c"])]


def test_a_clip_is_read_with_as_many_frames_as_the_data_set_says(adapter, bundle, monkeypatch):
    asked = []
    frames = [Image.new("RGB", (56, 56), color) for color in ("red", "blue")]
    monkeypatch.setattr(
        adapter, "read_clip", lambda path, n: asked.append((path.name, n)) or frames
    )
    model = adapter.VlmedgeModel(str(bundle), max_new_tokens=5)
    model.nframe = 2  # as the kit does
    parts = [{"type": "video", "value": "clip.mp4"}, {"type": "text", "value": "What moves?"}]
    got = model.generate_inner(parts)
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "What moves?"}]
    with Model.load(bundle) as runtime:
        assert got == runtime.chat([{"role": "user", "content": content}], OPTIONS).text
    assert asked == [("clip.mp4", 2)]
    as_list = adapter.read_parts([{"type": "video", "value": frames}], lambda path: [])
    assert as_list == [{"type": "video", "video": frames}]


def test_sound_is_refused(adapter):
    with pytest.raises(ValueError, match="'audio', Qwen2-VL takes text, image and video"):
        adapter.read_parts([{"type": "audio", "value": "a.wav"}], lambda path: [])


def test_a_registered_bundle_can_be_opened_by_its_name(adapter, bundle, monkeypatch):
    from vlmeval.config import supported_VLM

    monkeypatch.chdir(bundle.parent)
    adapter.register("tiny-int8", bundle.name, max_new_tokens=5)
    try:
        made = supported_VLM["tiny-int8"]
        assert isinstance(made, partial)
        monkeypatch.chdir("/")
        assert isinstance(made(), adapter.VlmedgeModel)
        with pytest.raises(ValueError, match="has a model called tiny-int8"):
            adapter.register("tiny-int8", bundle)
    finally:
        del supported_VLM["tiny-int8"]


def test_a_name_the_kit_takes_for_its_own_is_refused(adapter, bundle):
    with pytest.raises(ValueError, match="names with Qwen2-VL as its own"):
        adapter.register("Qwen2-VL-2B-orin", bundle)


@needs_vlmeval
def test_the_kit_asks_a_bundle_a_data_set(adapter, bundle, pictures, tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("vlmeval.inference", reason="VLMEvalKit lacks what it imports")
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data_job

    rows = []
    for index, path in enumerate(pictures):
        file = io.BytesIO()
        Image.open(path).save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
        rows.append({"index": index, "image": image, "question": QUESTION, "answer": "x"})
    monkeypatch.setenv("LMUData", str(tmp_path))
    monkeypatch.setenv("PRED_FORMAT", "tsv")
    pandas.DataFrame(rows).to_csv(tmp_path / "LocalVQA.tsv", sep="\t", index=False)
    model = adapter.VlmedgeModel(str(bundle), max_new_tokens=5)
    infer_data_job(model, str(tmp_path), "tiny-int8", build_dataset("LocalVQA"))
    table = pandas.read_csv(tmp_path / "tiny-int8_LocalVQA.tsv", sep="\t", dtype=str)
    assert list(table["prediction"]) == ANSWERS
