"""A bundle behind lmms-eval: against its installed package where there is one, else a stand-in."""

import importlib
import importlib.util
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.runtime.model import Model
from vlmedge.runtime.options import GenerationOptions

MODULE = "vlmedge.quant.harness.lmms_eval_adapter"
IS_INSTALLED = importlib.util.find_spec("lmms_eval") is not None
needs_lmms_eval = pytest.mark.skipif(not IS_INSTALLED, reason="lmms-eval is not installed")
OPTIONS = GenerationOptions(max_new_tokens=5, do_sample=False)
READER = Path(__file__).parents[3] / "samples" / "reader"
ANSWERS = ["42", "7", "1234"]
KEYWORDS = {"max_new_tokens": 5, "temperature": 0, "num_beams": 1, "until": []}


class StandIn:
    """What the adapter uses of lmms_eval.api.model.lmms."""

    def __init__(self):
        self.rank = 0
        self.task_dict = {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: None)

    def clean(self):
        pass


@dataclass
class StandInResult:
    text: object


@dataclass(frozen=True)
class StandInManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module, imported afresh if it stands on the stand-in."""
    if IS_INSTALLED:
        yield importlib.import_module(MODULE)
        return
    for name, content in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": StandInResult},
        "lmms_eval.api.model": {"lmms": StandIn},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": StandInManifest},
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
def docs():
    return [{"picture": write_number(answer), "question": "Read the number."} for answer in ANSWERS]


def write_number(number):
    picture = Image.new("RGB", (112, 84), "white")
    ImageDraw.Draw(picture).text((20, 20), number, fill="black", font_size=32)
    return picture


def make_request(*args):
    return types.SimpleNamespace(args=args)


def doc_to_messages(doc, **rounds):
    content = [
        {"type": "image", "url": doc["picture"]},
        {"type": "text", "text": doc["question"]},
    ]
    return [{"role": "user", "content": content}]


def open_model(cls, bundle, docs, **options):
    model = cls(str(bundle), **options)
    model.task_dict["vqa"] = {"test": docs}
    return model


def test_the_manifest_names_both_interfaces(adapter):
    manifest = adapter.make_manifest()
    assert manifest.model_id == "vlmedge"
    for path, is_simple in (
        (manifest.chat_class_path, False),
        (manifest.simple_class_path, True),
    ):
        module, _, name = path.rpartition(".")
        assert module == MODULE
        assert getattr(adapter, name).is_simple is is_simple


@pytest.mark.parametrize("batch_size", [1, 2, "2"])
def test_chat_requests_are_answered(adapter, bundle, docs, batch_size):
    model = open_model(adapter.VlmedgeChat, bundle, docs, batch_size=batch_size)
    requests = [
        make_request("", doc_to_messages, dict(KEYWORDS), index, "vqa", "test")
        for index in (2, 0, 1)
    ]
    assert model.generate_until(requests) == [ANSWERS[2], ANSWERS[0], ANSWERS[1]]
    model.clean()
    assert model.generate_until(requests[:1]) == [ANSWERS[2]]


def test_simple_requests_are_answered(adapter, bundle, docs):
    model = open_model(adapter.VlmedgeSimple, bundle, docs)
    requests = [
        make_request(
            f"<image>{doc['question']}",
            dict(KEYWORDS),
            lambda doc: [doc["picture"]],
            index,
            "vqa",
            "test",
        )
        for index, doc in enumerate(docs)
    ]
    assert model.generate_until(requests) == ANSWERS


def test_options_of_the_command_line_reach_the_runtime(adapter, bundle, docs):
    """lmms-eval parses bundle=...,max_pixels=784,system_prompt=... itself."""
    wide = write_number("42").resize((448, 336))
    options = {"max_pixels": 3136, "system_prompt": "Say one word.", "device": "cpu:0"}
    model = open_model(adapter.VlmedgeChat, bundle, [{"picture": wide, "question": "?"}], **options)
    got = model.generate_until(
        [make_request("", doc_to_messages, dict(KEYWORDS), 0, "vqa", "test")]
    )
    with Model.load(bundle) as runtime:
        turns = [
            {"role": "system", "content": "Say one word."},
            {
                "role": "user",
                "content": [{"type": "image", "image": wide}, {"type": "text", "text": "?"}],
            },
        ]
        assert got == [runtime.chat(turns, OPTIONS, max_pixels=3136).text]
        assert got != [runtime.chat(turns, OPTIONS).text]
    with pytest.raises(ValueError, match="batch_size is 'auto'"):
        adapter.VlmedgeChat(str(bundle), batch_size="auto")
    with pytest.raises(TypeError, match="use_flash_attention_2"):
        adapter.VlmedgeChat(str(bundle), use_flash_attention_2=True)


def test_rounds_of_a_chat_go_on_until_the_task_ends_them(adapter, bundle, docs):
    seen = []

    def rounds(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return doc_to_messages(doc)
        seen.append((round_idx, list(previous_output), previous_round_info))
        return doc_to_messages(docs[round_idx % 3]), round_idx == 2, previous_output, round_idx

    model = open_model(adapter.VlmedgeChat, bundle, docs)
    request = make_request("", rounds, dict(KEYWORDS), 0, "vqa", "test")
    assert model.generate_until_multi_round([request]) == [ANSWERS[:2]]
    assert seen == [(1, ANSWERS[:1], None), (2, ANSWERS[:2], 1)]
    once = make_request("", doc_to_messages, dict(KEYWORDS), 1, "vqa", "test")
    assert model.generate_until_multi_round([once]) == [[ANSWERS[1]]]


def test_rounds_of_the_simple_interface(adapter, bundle, docs):
    def doc_to_text(doc, previous_output, round_idx, previous_round_info):
        if round_idx == 2:
            return None, None, True, previous_output, None
        return [docs[1]["picture"]], docs[1]["question"], False, previous_output, None

    model = open_model(adapter.VlmedgeSimple, bundle, docs)
    request = make_request(
        docs[0]["question"],
        dict(KEYWORDS),
        lambda doc: [doc["picture"]],
        doc_to_text,
        0,
        "vqa",
        "test",
    )
    assert model.generate_until_multi_round([request]) == [ANSWERS[:2]]


def test_losses_are_those_of_transformers(adapter, make_bundle, load_reference, docs):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer

    made = make_bundle("tiny")
    reference = load_reference(made.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(made.checkpoint)
    model = open_model(adapter.VlmedgeSimple, made.bundle, docs)
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Say it.<|im_end|>\n<|im_start|>assistant\n"
    )
    words = [" blue", " the red one", ""]
    requests = [make_request("Say it.", word, lambda doc: None, 0, "vqa", "test") for word in words]
    got = [result.text for result in model.loglikelihood(requests)]
    prompt_ids = tokenizer(prompt)["input_ids"]
    assert got.pop() == (0.0, True)  # of no tokens
    for word, (loss, is_greedy) in zip(words, got, strict=False):
        word_ids = tokenizer(word)["input_ids"]
        ids = torch.tensor([prompt_ids + word_ids])
        labels = ids.clone()
        labels[0, : len(prompt_ids)] = -100
        with torch.no_grad():
            needed = reference(ids, labels=labels)
        assert loss == pytest.approx(float(needed.loss), abs=1e-3)
        best = needed.logits[0, len(prompt_ids) - 1 : -1].argmax(-1).tolist()
        assert is_greedy == (best == word_ids)


def test_a_loss_depends_on_the_picture(adapter, bundle, docs):
    model = open_model(adapter.VlmedgeSimple, bundle, docs)

    def ask(index, target):
        return make_request(
            docs[index]["question"], target, lambda doc: [doc["picture"]], index, "vqa", "test"
        )

    found = model.loglikelihood([ask(0, " blue"), ask(1, " blue"), ask(0, lambda doc: " blue")])
    first, other, by_function = (result.text for result in found)
    assert first[0] != other[0]  # the picture is seen
    assert first == by_function


def test_chat_has_no_likelihoods_and_says_what_to_do(adapter, bundle, docs):
    model = open_model(adapter.VlmedgeChat, bundle, docs)
    with pytest.raises(NotImplementedError, match="add --force_simple"):
        model.loglikelihood([])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "a.wav"}, "'audio', Qwen2-VL takes text, images and videos"),
        ({"type": "video", "url": "a.mp4", "start_time": 1.0}, "span of a video"),
    ],
)
def test_what_the_model_cannot_see_is_an_error(adapter, part, message):
    with pytest.raises(ValueError, match=message):
        adapter.read_chat([{"role": "user", "content": [part]}], lambda path: [])


def test_a_clip_is_read_as_frames(adapter):
    frames = [Image.new("RGB", (28, 28))] * 2
    parts = [{"type": "video", "url": "a.mp4"}, {"type": "video", "url": frames}]
    (turn,) = adapter.read_chat([{"role": "user", "content": parts}], lambda path: frames)
    assert turn["content"] == [{"type": "video", "video": frames}] * 2


TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: !function functions.visual
doc_to_text: !function functions.text
"""
FUNCTIONS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture
def task_folder(tmp_path, docs):
    """Two tasks of lmms-eval's own format: of three answers one is made wrong."""
    rows = []
    for index, (doc, answer) in enumerate(zip(docs, ANSWERS, strict=True)):
        path = tmp_path / f"{index}.png"
        doc["picture"].save(path)
        answer = answer if index else f"not {answer}"
        rows.append({"picture": str(path), "question": doc["question"], "answer": answer})
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    generate = (
        "output_type: generate_until\ndoc_to_target: answer\n"
        "generation_kwargs: {max_new_tokens: 5, temperature: 0, until: []}\n"
        "metric_list:\n- {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    choose = (
        "output_type: multiple_choice\ndoc_to_target: 0\ndoc_to_choice: ['yes', 'no', 'cat']\n"
        "metric_list:\n- {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    for name, rest in (("generate", generate), ("choose", choose)):
        text = TASK.format(name=f"vlmedge_{name}", data=data) + rest
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@needs_lmms_eval
@pytest.mark.parametrize("force_simple", [False, True])
def test_lmms_eval_runs_a_task_on_a_bundle(adapter, bundle, docs, task_folder, force_simple):
    pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval lacks what its evaluator imports")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    MODEL_REGISTRY_V2.register_manifest(adapter.make_manifest(), overwrite=True)
    tasks = ["vlmedge_generate", "vlmedge_choose"] if force_simple else ["vlmedge_generate"]
    found = simple_evaluate(
        model="vlmedge",
        model_args=f"bundle={bundle},num_threads=1",
        tasks=tasks,
        batch_size=2,
        force_simple=force_simple,
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        bootstrap_iters=0,
    )
    scores = found["results"]
    assert scores["vlmedge_generate"]["exact_match,none"] == pytest.approx(2 / 3)
    if force_simple:
        model = open_model(adapter.VlmedgeSimple, bundle, docs)
        chosen = []
        for index, doc in enumerate(docs):
            requests = [
                make_request(
                    doc["question"], f" {word}", lambda d: [d["picture"]], index, "vqa", "test"
                )
                for word in ("yes", "no", "cat")
            ]
            losses = [result.text[0] for result in model.loglikelihood(requests)]
            chosen.append(losses.index(min(losses)))
        assert scores["vlmedge_choose"]["acc,none"] == pytest.approx(chosen.count(0) / 3)
