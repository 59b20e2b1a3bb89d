"""A checkpoint that we would have read wrongly: both comparisons with transformers show it.

Each bundle is made of the sample's checkpoint as it is, each folder is changed afterwards: what the
bundle says is then what a reader that overlooks the change would have written.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.verify.reference import TransformersSide
from vlmedge.export.verify.verify import verify_bundle
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.data.examples import DataSet, Example

SAMPLES = Path(__file__).parents[3] / "samples"
QUESTION = "What is the total?"
LIMITS = {"shortest_edge": 3136, "longest_edge": 100352}
RECEIPT = Example(
    "receipt",
    (
        {
            "role": "user",
            "content": [
                {"type": "image", "image": str(SAMPLES / "pictures" / "receipt-0.png")},
                {"type": "text", "text": QUESTION},
            ],
        },
    ),
)
DATA = DataSet("one.jsonl", "ab" * 32, (RECEIPT,), {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    export_checkpoint(SAMPLES / "reader", folder)
    return folder


@pytest.fixture
def reader(tmp_path):
    return shutil.copytree(SAMPLES / "reader", tmp_path / "reader")


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def roll_digits(matrix):
    """The rows of the digits 0 to 9 moved on by one: answers tell which matrix was used."""
    rolled = matrix.copy()
    rolled[13:23] = np.roll(matrix[13:23], 1, axis=0)
    return rolled


def move_settings(reader):
    path = reader / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.unlink()
    config = {key: value for key, value in config.items() if not key.endswith("_pixels")}
    moved = config | {"size": LIMITS | {"longest_edge": 50176}}
    edit(reader / "processor_config.json", image_processor=moved)


def store_another_head(reader):
    path = reader / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = roll_digits(tensors["model.embed_tokens.weight"])
    save_file(tensors, path, {"format": "pt"})


def store_other_weights(reader):
    """As a merge leaves them that was saved over one of the two."""
    path = reader / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = roll_digits(tensors["model.embed_tokens.weight"])
    save_file(tensors, path, {"format": "pt"})


def name_the_end_token(reader):
    path = reader / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    edit(path, chat_template=template.replace("<|im_end|>\\n' }}", "' + eos_token + '\\n' }}"))
    assert "eos_token" in path.read_text()


def generate_by(**settings):
    return lambda reader: edit(reader / "generation_config.json", **settings)


def see_by(**settings):
    return lambda reader: edit(reader / "preprocessor_config.json", **settings)


# change -> the settings that differ; none where it is the weights
CASES = {
    "pixel limits in processor_config.json": (move_settings, {"pixels.max_pixels"}),
    "other weights": (store_other_weights, set()),
    "a head of its own beside tied weights": (store_another_head, set()),
    "a template that names the end token": (
        name_the_end_token,
        {"chat_template", "special_tokens.eos_token"},
    ),
    "suppress_tokens": (generate_by(suppress_tokens=[17]), {"generation.suppress_tokens"}),
    "no_repeat_ngram_size": (
        generate_by(no_repeat_ngram_size=1),
        {"generation.no_repeat_ngram_size"},
    ),
    "min_new_tokens": (generate_by(min_new_tokens=10), {"generation.min_new_tokens"}),
    "max_new_tokens": (generate_by(max_new_tokens=2), {"generation.max_new_tokens"}),
    "rescale_factor": (
        see_by(rescale_factor=1 / 127.5),
        {"pixels.image_mean", "pixels.image_std"},
    ),
    "do_normalize": (see_by(do_normalize=False), {"pixels.image_mean", "pixels.image_std"}),
    "do_rescale": (see_by(do_rescale=False), {"pixels.image_mean", "pixels.image_std"}),
    "resample": (see_by(resample=2), {"pixels.resample"}),
}


@pytest.mark.parametrize("name", CASES)
def test_check_and_verify_fail_and_name_what_was_read_wrongly(bundle, reader, name):
    change, settings = CASES[name]
    change(reader)
    report = verify_bundle(reader, bundle, image_sizes=[(90, 60)], num_tokens=4)
    assert not report.passed
    assert {row.request for row in report.rows if row.what == "settings" and not row.ok} == settings
    result = run_check(bundle, reader, DATA, CheckPlan(("logits", "texts"), 8, 1, 1))
    assert {one.name for one in result.settings if not one.is_equal} == settings
    if not settings:
        assert {row.what for row in report.rows if not row.ok} >= {"logits"}
        assert result.texts[0].got != result.texts[0].reference


def test_the_plain_checkpoint_passes_both(bundle, reader):
    report = verify_bundle(reader, bundle, image_sizes=[(90, 60)], num_tokens=4)
    assert report.passed
    result = run_check(bundle, reader, DATA, CheckPlan(("logits", "texts"), 8, 1, 1))
    assert all(one.is_equal for one in result.settings)
    assert result.texts[0].got == result.texts[0].reference == "26.29"


@pytest.mark.parametrize(
    ("name", "answer"),
    [("a template that names the end token", "26.29"), ("suppress_tokens", "36.49")],
)
def test_the_reference_answers_as_the_changed_folder_says(bundle, reader, name, answer):
    CASES[name][0](reader)
    side = TransformersSide(reader, bundle, 1)
    try:
        assert side.observe(RECEIPT, 16).text == answer
    finally:
        side.close()


@pytest.mark.parametrize("name", ["a template that names the end token", "resample"])
def test_a_bundle_made_of_the_changed_folder_passes(reader, tmp_path, name):
    change, _ = CASES[name]
    change(reader)
    export_checkpoint(reader, tmp_path / "bundle")
    report = verify_bundle(reader, tmp_path / "bundle", image_sizes=[(90, 60)], num_tokens=4)
    assert report.passed
