"""What a check runs is what `run` runs: whatever a bundle's settings are, its answers are these."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.check.plan import CheckPlan
from vlmedge.quant.check.run import run_check
from vlmedge.quant.compare.decoding import choose_seed
from vlmedge.quant.compare.observe import BundleSide
from vlmedge.quant.compare.settings import list_setting_names, read_bundle_settings
from vlmedge.quant.data.examples import DataSet, Example
from vlmedge.quant.gate.gate import parse_gate
from vlmedge.quant.gate.verdict import judge
from vlmedge.runtime import BundleError, GenerationOptions, Model
from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.bundle.manifest_checks import TEMPLATE_TOKENS
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.decode.encode import encode_visuals

NUM_TOKENS = 12
GATE = parse_gate("[text]\nedit_distance_max = 1000000")  # no limit that an answer could break


def draw(seed, width, height):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def ask(name, *parts):
    kinds = {str: "text", list: "video"}
    content = []
    for part in parts:
        kind = kinds.get(type(part), "image")
        content.append({"type": kind, kind: part})
    return Example(name, ({"role": "user", "content": content},))


# A clip with more frame pairs than rows and columns: where the rules of positions differ
EXAMPLES = (
    ask("text", "What is the total?"),
    ask("pictures", draw(1, 180, 120), draw(2, 180, 120), "Compare."),
    ask("clip", [draw(seed, 28, 28) for seed in range(8)], "What moves?"),
)
DATA = DataSet("three.jsonl", "ab" * 32, EXAMPLES, {})


def answer_as_run(bundle, example, max_new_tokens=NUM_TOKENS):
    """`vlmedge run` without options, but for the length and the seed."""
    options = GenerationOptions(max_new_tokens=max_new_tokens, seed=choose_seed(example.id))
    with Model.load(bundle, providers="cpu", num_threads=1, residency="one") as model:
        return model.chat(example.messages, options)


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module")
def first_tokens(bundle):
    """Tokens of the bundle's own answers, which end tokens are chosen from."""
    side = BundleSide(bundle, 1)
    try:
        return [side.observe(example, NUM_TOKENS, is_plain=True).token_ids for example in EXAMPLES]
    finally:
        side.close()


@pytest.fixture
def copy(bundle, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(bundle, target)
    return target


def set_to(part, field, value):
    def change(copy, edit):
        edit(copy, lambda manifest: manifest[part].__setitem__(field, value))

    return change


def set_top(field, value):
    def change(copy, edit):
        edit(copy, lambda manifest: manifest.__setitem__(field, value))

    return change


def sample(**fields):
    def change(copy, edit):
        edit(copy, lambda manifest: manifest["generation"].update(do_sample=True, **fields))

    return change


def rewrite(record, change_text):
    """Another content of a file that the manifest names, with its size and hash."""

    def change(copy, edit):
        name = getattr(read_manifest(copy), record)
        content = change_text((copy / name).read_text("utf-8")).encode()
        (copy / name).write_bytes(content)
        digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edit(copy, lambda manifest: manifest["files"].__setitem__(name, digest))

    return change


def move_special(name):
    """Swap two special tokens in the tokenizer and its manifest."""

    def change(copy, edit):
        manifest = read_manifest(copy)
        path = copy / manifest.tokenizer_file
        content = json.loads(path.read_text("utf-8"))
        tokens = {token["id"]: token for token in content["added_tokens"]}
        old = getattr(manifest.tokens, name)
        new = next(i for i in tokens if i not in dataclasses.asdict(manifest.tokens).values())
        first, second = tokens[old]["content"], tokens[new]["content"]
        tokens[old]["content"], tokens[new]["content"] = second, first
        vocab = content["model"]["vocab"]
        for text, token_id in ((first, new), (second, old)):
            if text in vocab:
                vocab[text] = token_id
        rewrite("tokenizer_file", lambda _: json.dumps(content))(copy, edit)
        edit(copy, lambda raw: raw["tokens"].__setitem__(name, new))

    return change


# Setting -> a change of it; a new field without one fails the test below. Those of `vision` are
# fixed by the graphs, end tokens are chosen from the answers.
CHANGES = {
    "tokens.vision_start": move_special("vision_start"),
    "tokens.vision_end": move_special("vision_end"),
    "tokens.image_pad": move_special("image_pad"),
    "tokens.video_pad": move_special("video_pad"),
    "tokens.eos": None,
    "generation.do_sample": sample(),
    "generation.temperature": sample(temperature=3.0),
    "generation.top_k": sample(top_k=3),
    "generation.top_p": sample(top_p=0.4),
    "generation.repetition_penalty": set_to("generation", "repetition_penalty", 3.0),
    "generation.max_new_tokens": set_to("generation", "max_new_tokens", 3),
    "generation.max_length": set_to("generation", "max_length", 900),
    "generation.min_new_tokens": set_to("generation", "min_new_tokens", 5),
    "generation.min_length": set_to("generation", "min_length", 60),
    "generation.stop_strings": set_to("generation", "stop_strings", ["e", "a\n"]),
    "generation.min_p": sample(min_p=0.3),
    "generation.top_h": sample(top_h=0.4),
    "generation.typical_p": sample(typical_p=0.5),
    "generation.epsilon_cutoff": sample(epsilon_cutoff=0.01),
    "generation.eta_cutoff": sample(eta_cutoff=0.01),
    "generation.encoder_repetition_penalty": set_to(
        "generation", "encoder_repetition_penalty", 3.0
    ),
    "generation.no_repeat_ngram_size": set_to("generation", "no_repeat_ngram_size", 1),
    "generation.encoder_no_repeat_ngram_size": set_to(
        "generation", "encoder_no_repeat_ngram_size", 1
    ),
    "generation.bad_words_ids": set_to("generation", "bad_words_ids", [[5], [6, 7]]),
    "generation.sequence_bias": set_to("generation", "sequence_bias", [[[9], 20.0]]),
    "generation.forced_eos_token_id": set_to("generation", "forced_eos_token_id", [9]),
    "generation.exponential_decay_length_penalty": set_to(
        "generation", "exponential_decay_length_penalty", [2, 9.0]
    ),
    "generation.suppress_tokens": set_to("generation", "suppress_tokens", [*range(9, 99)]),
    "generation.begin_suppress_tokens": set_to("generation", "begin_suppress_tokens", [9, 10]),
    "generation.remove_invalid_values": set_to("generation", "remove_invalid_values", True),
    "pixels.min_pixels": set_to("pixels", "min_pixels", 112 * 112),
    "pixels.max_pixels": set_to("pixels", "max_pixels", 4 * 56 * 56),
    "pixels.image_mean": set_to("pixels", "image_mean", [0.1, 0.2, 0.9]),
    "pixels.resample": set_to("pixels", "resample", "nearest"),
    "pixels.clip_min_pixels": None,
    "pixels.clip_max_pixels": None,
    "pixels.image_std": set_to("pixels", "image_std", [0.9, 0.5, 0.1]),
    "vision.patch_size": None,
    "vision.temporal_patch_size": None,
    "vision.spatial_merge_size": None,
    "mrope_rule": set_top("mrope_rule", "transformers>=5.3"),
    "tokenizer": rewrite(
        "tokenizer_file", lambda text: text.replace('"added_tokens"', '\n"added_tokens"')
    ),
    "chat_template": rewrite("chat_template_file", lambda text: text.replace("helpful", "rude")),
}


def test_every_setting_of_a_bundle_is_changed_below(bundle):
    settings = read_bundle_settings(Path(bundle), read_manifest(bundle))
    named = {f"special_tokens.{name}" for name in TEMPLATE_TOKENS}  # where the template has them
    assert set(CHANGES) == set(settings)
    assert set(CHANGES) | named == set(list_setting_names())


CHANGED = [name for name, change in CHANGES.items() if change] + ["tokens.eos"]


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_noticed_and_the_answers_are_those_of_run(
    bundle, copy, name, first_tokens, edit_manifest
):
    change = CHANGES[name] or set_to("tokens", "eos", [first_tokens[0][2], first_tokens[1][4]])
    change(copy, edit_manifest)
    plan = CheckPlan(("texts", "embeddings", "logits"), NUM_TOKENS, 1, 1)
    result = run_check(copy, bundle, DATA, plan)
    assert name in [one.name for one in result.settings if not one.is_equal]
    verdict = judge(result, GATE)
    assert [row.key for row in verdict.failed] == ["settings.differences_max"]
    assert name in verdict.failed[0].detail
    for example, text in zip(EXAMPLES, result.texts, strict=True):
        ours, theirs = (answer_as_run(side, example) for side in (copy, bundle))
        assert (text.got, text.reference) == (ours.text, theirs.text)
        assert text.got_ended == (ours.finish_reason == "stop")


PRESETS = ("orin", "cpu", "accurate", "smallest", "thor")


@pytest.mark.parametrize("preset", PRESETS)
def test_looking_into_a_quantized_bundle_changes_none_of_its_answers(quantize, preset):
    """The graph of the ViT gets outputs in the middle, which must not change how it is fused."""
    made = quantize(preset).bundle
    side = BundleSide(made, 1)
    backend = OrtBackend(made, side.manifest, providers="cpu", num_threads=1)
    for example in EXAMPLES:
        seen = side.observe(example, NUM_TOKENS)
        answer = answer_as_run(made, example)
        assert (seen.token_ids, seen.text) == (answer.token_ids, answer.text)
        request = side._maker.make(example.messages)
        size = side.manifest.decoder.hidden_size
        embeds = encode_visuals(backend, request.visuals, size, lambda: False)
        for visual, needed in zip(seen.visuals, embeds, strict=True):
            np.testing.assert_array_equal(visual.image_embeds, needed)
    side.close()


def test_answers_end_by_each_sides_own_end_tokens_and_runaways_are_counted(
    bundle, copy, first_tokens, edit_manifest
):
    never = next(i for i in range(256) if all(i not in tokens for tokens in first_tokens))
    ends = [tokens[3] for tokens in first_tokens]
    edit_manifest(copy, lambda raw: raw["tokens"].__setitem__("eos", ends))
    result = run_check(bundle, copy, DATA, CheckPlan(("texts",), NUM_TOKENS, 1, 1))
    assert all(text.reference_ended and not text.got_ended for text in result.texts)
    gate = parse_gate("text.unended_max = 0\nsettings.allow = ['tokens.eos']")
    (row,) = judge(result, gate).failed
    assert row.message == (
        "text.unended_max: got 1, needed at most 0 "
        "(3 of 3 answers did not end, 0 of the reference's)"
    )
    edit_manifest(copy, lambda raw: raw["tokens"].__setitem__("eos", [never]))
    same = run_check(copy, bundle, DATA, CheckPlan(("texts",), NUM_TOKENS, 1, 1))
    assert all(text.got == text.reference for text in same.texts)
    assert judge(same, GATE).state == "failed"
    assert judge(same, gate).state == "passed"  # it is allowed, and both sides run on


def test_pictures_of_another_size_fail_their_limits_instead_of_the_command(
    bundle, copy, edit_manifest
):
    edit_manifest(copy, lambda raw: raw["pixels"].update(max_pixels=4 * 56 * 56))
    data = dataclasses.replace(DATA, examples=EXAMPLES[1:2])
    result = run_check(copy, bundle, data, CheckPlan(("embeddings",), 4, 1, 1))
    assert result.embeddings == ()
    verdict = judge(result, parse_gate("image_embeds.cosine_min = -1"))
    assert [row.key for row in verdict.failed] == [
        "settings.differences_max",
        "image_embeds.cosine_min",
    ]
    assert "other sizes on the two sides" in verdict.failed[1].message


def test_a_sampling_bundle_is_drawn_from_with_a_seed_of_each_example(copy, edit_manifest):
    edit_manifest(copy, lambda raw: raw["generation"].update(do_sample=True, temperature=2.0))
    twice = [run_check(copy, copy, DATA, CheckPlan(("texts",), NUM_TOKENS, 1, 1)) for _ in "ab"]
    assert twice[0].texts == twice[1].texts
    assert all(text.got == text.reference for text in twice[0].texts)
    assert "sampled with a fixed seed" in twice[0].environment["answers of the bundle"]
    assert len({choose_seed(example.id) for example in EXAMPLES}) == len(EXAMPLES)


def test_no_end_token_at_all_is_refused(copy, edit_manifest):
    edit_manifest(copy, lambda raw: raw["tokens"].__setitem__("eos", []))
    with pytest.raises(BundleError, match=r"manifest\.json\.tokens: eos is empty"):
        read_manifest(copy)
    with pytest.raises(BundleError, match="eos is empty"):
        run_check(copy, copy, DATA, CheckPlan(("settings",), 1, 1, 1))


def test_an_end_token_beyond_the_vocabulary_is_refused(copy, edit_manifest):
    edit_manifest(copy, lambda raw: raw["tokens"].__setitem__("eos", [1 << 20]))
    with pytest.raises(BundleError, match=r"tokens\.eos holds 1048576: not one of the"):
        read_manifest(copy)
