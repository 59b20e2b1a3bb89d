"""A checkpoint as a reference answers by its own settings, whatever the bundle says of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.export.verify.reference import TransformersSide
from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.compare.observe import BundleSide
from vlmedge.quant.compare.settings import compare_settings
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge

SAMPLES = Path(__file__).parents[3] / "samples"
NUM_TOKENS = 10
LEVELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
TEXT = Example("text", ({"role": "user", "content": "Why?"},))
LOOK = Example(
    "look",
    (
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.fromarray(LEVELS)},
                {"type": "text", "text": "What?"},
            ],
        },
    ),
)
DATA = DataSet("two.jsonl", "ab" * 32, (TEXT, LOOK), {})
TEXTS = CheckPlan(("texts", "logits"), NUM_TOKENS, 1, 1)


@pytest.fixture
def make(make_bundle, tmp_path):
    """make(**generation): a float32 checkpoint whose generation_config.json says so, exported."""

    def make(**generation):
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(make_bundle("tiny", dtype="F32").checkpoint, checkpoint)
        path = checkpoint / "generation_config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(config | generation))
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportOptions("fp32"))
        return checkpoint, tmp_path / "bundle"

    return make


def observe(side, example, **options):
    try:
        return side.observe(example, NUM_TOKENS, **options)
    finally:
        side.close()


@pytest.mark.parametrize("size", ["tiny", "tiny-7b"])
def test_a_fresh_export_has_the_settings_that_transformers_loads(make_bundle, size):
    made = make_bundle(size)
    needed = TransformersSide(made.checkpoint, made.bundle, 1).settings
    got = BundleSide(made.bundle, 1).settings
    assert [one for one in compare_settings(got, needed) if not one.is_equal] == []
    assert len(needed) == 43


def test_the_sample_is_exported_with_its_own_settings(tmp_path):
    export_checkpoint(SAMPLES / "reader", tmp_path / "reader", ExportOptions("fp32"))
    needed = TransformersSide(SAMPLES / "reader", tmp_path / "reader", 1).settings
    assert BundleSide(tmp_path / "reader", 1).settings == needed
    assert needed["tokens.eos"] == "[462, 464]"


def test_limits_of_clips_are_the_checkpoints_own(tmp_path):
    checkpoint = shutil.copytree(SAMPLES / "reader", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "preprocessor_config.json").read_text())
    path = checkpoint / "video_preprocessor_config.json"
    path.write_text(json.dumps(config | {"max_pixels": 50_176}))
    export_checkpoint(checkpoint, tmp_path / "reader", ExportOptions("fp32"))
    needed = TransformersSide(checkpoint, tmp_path / "reader", 1).settings
    assert BundleSide(tmp_path / "reader", 1).settings == needed
    assert needed["pixels.clip_max_pixels"] == "50176"


def test_penalized_answers_are_those_of_generate_itself(make):
    checkpoint, bundle = make(repetition_penalty=1.7)
    seen = observe(TransformersSide(checkpoint, bundle, 1), TEXT)
    model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    side = BundleSide(bundle, 1)
    ids = torch.from_numpy(side._maker.make(TEXT.messages).input_ids)[None]
    answer = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS
    )[0, ids.shape[1] :].tolist()
    assert list(seen.token_ids) == answer
    assert observe(side, TEXT).token_ids == seen.token_ids
    plain = observe(TransformersSide(checkpoint, bundle, 1), TEXT, is_plain=True)
    assert plain.token_ids != seen.token_ids
    np.testing.assert_array_equal(plain.logits[0], seen.logits[0])  # before any penalty


def test_a_checkpoint_that_samples_is_drawn_from_as_its_bundle_is(make):
    checkpoint, bundle = make(do_sample=True, temperature=1.5, top_p=0.9, repetition_penalty=1.1)
    result = run_check(bundle, checkpoint, DATA, TEXTS)
    assert all(one.is_equal for one in result.settings)
    for text in result.texts:
        assert text.got == text.reference
    greedy = observe(BundleSide(bundle, 1), TEXT, is_plain=True)
    assert result.texts[0].got != greedy.text


def test_a_checkpoint_that_samples_and_names_no_top_k_has_that_of_transformers(make):
    checkpoint, bundle = make(do_sample=True)
    ours, theirs = BundleSide(bundle, 1).settings, TransformersSide(checkpoint, bundle, 1).settings
    assert ours["generation.top_k"] == theirs["generation.top_k"] == "50"


def test_wrong_end_tokens_of_a_bundle_do_not_reach_the_reference(make, edit_manifest):
    checkpoint, bundle = make()
    free = observe(BundleSide(bundle, 1), TEXT)
    edit_manifest(bundle, lambda raw: raw["tokens"].update(eos=[free.token_ids[1]]))
    result = run_check(bundle, checkpoint, DATA, TEXTS)
    assert result.texts[0].got != result.texts[0].reference == free.text
    verdict = judge(result, parse_gate("[text]\nexact_match_min = 1"))
    assert [row.key for row in verdict.failed] == [
        "settings.differences_max",
        "text.exact_match_min",
    ]
    assert verdict.failed[0].detail == "tokens.eos"


def test_the_reference_is_asked_by_its_own_template(make, renew_records):
    checkpoint, bundle = make()
    path = bundle / "chat_template.jinja"
    path.write_text(path.read_text().replace("helpful", "h31pful"))
    renew_records(bundle)
    result = run_check(bundle, checkpoint, DATA, TEXTS)
    assert [one.name for one in result.settings if not one.is_equal] == ["chat_template"]
    ours, theirs = (
        side._maker.make(TEXT.messages).input_ids.tolist()
        for side in (BundleSide(bundle, 1), TransformersSide(checkpoint, bundle, 1))
    )
    assert ours != theirs
    path.write_text(path.read_text().replace("h31pful", "helpful"))
    renew_records(bundle)
    assert BundleSide(bundle, 1)._maker.make(TEXT.messages).input_ids.tolist() == theirs


def test_another_pixel_budget_of_the_bundle_does_not_reach_the_reference(make, edit_manifest):
    checkpoint, bundle = make()
    edit_manifest(bundle, lambda raw: raw["pixels"].update(max_pixels=56 * 56))
    (theirs,) = observe(TransformersSide(checkpoint, bundle, 1), LOOK).visuals
    (ours,) = observe(BundleSide(bundle, 1), LOOK).visuals
    assert (theirs.bucket, ours.bucket) == ("84x56", "56x28")


@pytest.mark.parametrize(
    "asked",
    [
        {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"suppress_tokens": [1, 2], "bad_words_ids": [[5, 6]], "sequence_bias": [[[7], 2.0]]},
        {"stop_strings": ["e"], "encoder_repetition_penalty": 1.5},
        {"do_sample": True, "suppress_tokens": [1], "sequence_bias": [[[7], 2.0]], "min_p": 0.01},
    ],
)
def test_both_sides_of_a_check_follow_the_settings_of_generate(make, edit_manifest, asked):
    checkpoint, bundle = make(**asked)
    result = run_check(bundle, checkpoint, DATA, TEXTS)
    assert all(one.is_equal for one in result.settings)
    for text in result.texts:
        assert text.got == text.reference
    name = list(asked)[-1]
    edit_manifest(bundle, lambda raw: raw["generation"].pop(name))
    result = run_check(bundle, checkpoint, DATA, CheckPlan(("settings",), 1, 1, 1))
    (found,) = [one for one in result.settings if not one.is_equal]
    assert found.name == f"generation.{name}"


def test_what_the_checkpoint_asks_of_generate_and_no_bundle_has_is_a_difference(
    make_bundle, tmp_path
):
    made = make_bundle("tiny", dtype="F32")
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(made.checkpoint, checkpoint)
    (checkpoint / "generation_config.json").write_text(json.dumps({"guidance_scale": 2.0}))
    result = run_check(made.bundle, checkpoint, DATA, CheckPlan(("settings",), 1, 1, 1))
    (found,) = [one for one in result.settings if one.name == "generation.guidance_scale"]
    assert (found.reference, found.got) == ("2.0", "-")
