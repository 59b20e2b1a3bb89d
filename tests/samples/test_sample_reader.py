"""The shipped checkpoint: its files agree with the code, and it reads the pictures beside it."""

import json
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
READER = SAMPLES / "reader"
PICTURES = SAMPLES / "pictures"
ENTRIES = json.loads((PICTURES / "questions.json").read_text())
MOST_BYTES = 12 * 2**20


def test_the_checkpoint_is_small_enough_for_git():
    assert sum(path.stat().st_size for path in READER.iterdir()) < MOST_BYTES


def test_the_tokenizer_and_the_template_are_what_the_code_builds():
    pytest.importorskip("matplotlib")
    from sample.words import CHAT_TEMPLATE, build_tokenizer

    assert json.loads((READER / "tokenizer.json").read_text()) == json.loads(
        build_tokenizer().to_str()
    )
    template = json.loads((READER / "chat_template.json").read_text())
    assert template == {"chat_template": CHAT_TEMPLATE}


def test_the_pictures_are_what_the_code_draws():
    pytest.importorskip("matplotlib")
    from draw_sample import SHOWN

    assert {entry["task"] for entry in ENTRIES} == set(SHOWN)
    for entry in ENTRIES:
        for name in entry.get("frames", [entry.get("picture")]):
            assert (PICTURES / name).is_file()


def test_transformers_loads_it_whole_and_agrees_with_the_training_code():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    from random import Random

    from sample.batches import make_batch
    from sample.checkpoint import read_checkpoint
    from sample.losses import answer, see
    from sample.pixels import cut_patches
    from sample.tasks import TASKS, make_example, pick_shape

    model, loading = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        READER, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    model.eval()
    reader, tokenizer = read_checkpoint(READER)
    for task in TASKS:
        shape = pick_shape(task, Random(1))
        batch = make_batch(tokenizer, shape, [make_example("held-out", shape, 0, 0)])
        patches = cut_patches(batch.pixels, torch.float32).flatten(0, 1)
        grid = torch.tensor([[shape.num_slices, *(2 * n for n in shape.cells)]])
        kind = ("pixel_values_videos", "video_grid_thw") if task == "clip" else (
            "pixel_values", "image_grid_thw"
        )  # fmt: skip
        with torch.inference_mode():
            ours = answer(reader, batch, see(reader, batch))
            theirs = model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                **dict(zip(kind, (patches, grid), strict=True)),
            ).logits[batch.answer_slots]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from vlmedge.export.exporter import export_checkpoint
    from vlmedge.runtime import Model

    bundle = tmp_path_factory.mktemp("sample") / "reader.bundle"
    export_checkpoint(READER, bundle)
    with Model.load(bundle, providers="cpu") as loaded:
        yield loaded


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['task']}: {e['question']}")
def test_the_sample_reads_the_picture(model, entry):
    if "frames" in entry:
        frames = [PICTURES / name for name in entry["frames"]]
        text = model.answer(entry["question"], videos=[frames]).text
    else:
        text = model.answer(entry["question"], [PICTURES / entry["picture"]]).text
    assert text == entry["answer"]
