"""Every key of transformers' GenerationConfig: our answers are its answers, or export refuses.

The oracle is transformers' generate() on the sample model in float32, with its own reading of the
changed folder, its own tokenizer and its own pixels. Answers are compared token by token.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, GenerationConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmedge.export.checkpoint.generation import find_generation_defaults, read_generation_defaults
from vlmedge.export.checkpoint.keys.generation import RULES, SECTION
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.bundle.manifest import GenerationDefaults

SAMPLES = Path(__file__).parents[4] / "samples"
READER, PICTURE = SAMPLES / "reader", SAMPLES / "pictures" / "receipt-0.png"
QUESTION = "What is the total?"
ANSWER = "26.29"
VOCAB_SIZE = 480
END_IDS = [464, 462]
FEW = {"max_new_tokens": 12}
# A value of each honoured key that gives another answer than "26.29", with what it needs
CHANGED = {
    "max_new_tokens": {"max_new_tokens": 2},
    "max_length": {"max_new_tokens": None, "max_length": 71},
    "min_new_tokens": {"min_new_tokens": 10},
    "min_length": {"min_length": 76},
    "stop_strings": {"stop_strings": ["6.", "x"]},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 30.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[17, 21], [24], [1, 2, 3]]},
    "sequence_bias": {"sequence_bias": [[[17, 21], -30.0], [[13], 2.5]]},
    "forced_eos_token_id": {"max_new_tokens": 3, "forced_eos_token_id": [22, 464]},
    "exponential_decay_length_penalty": {
        "min_new_tokens": 2,
        "exponential_decay_length_penalty": [1, 40.0],
    },
    "suppress_tokens": {"suppress_tokens": [17, -1, 999]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [17]},
    "eos_token_id": {"eos_token_id": [13]},
}
# Without a visible effect on this answer; tests/runtime/test_processors.py compares their scores
INVISIBLE = {
    "remove_invalid_values": {"remove_invalid_values": True},
    "pad_token_id": {"pad_token_id": 13},
}
SAMPLED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p")
SAMPLED += ("epsilon_cutoff", "eta_cutoff")
REFUSED = {
    "num_beams": 2,
    "num_return_sequences": 2,
    "constraints": [],
    "force_words_ids": [[1]],
    "penalty_alpha": 0.5,
    "dola_layers": "high",
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.0},
    "max_time": 1.0,
    "token_healing": True,
    "use_mtp": True,
    "assistant_early_exit": 1,
    "is_assistant": True,
    "speculation_type": "dflash",
    "cache_implementation": "quantized",
    "early_stopping": "sometimes",
    "compile_config": {"mode": "default"},
}
NO_EFFECT = {
    "length_penalty": 3.0,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "low_memory": True,
    "renormalize_logits": True,
    "forced_bos_token_id": 5,
    "bos_token_id": 5,
    "decoder_start_token_id": 5,
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 3,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "assistant_ensemble_weight": 0.5,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "use_cache": False,
    "cache_config": {"nbits": 4},
    "max_cache_len": 200,
    "prefill_chunk_size": 7,
    "disable_compile": True,
    "continuous_batching_config": {"block_size": 8},
    "transformers_version": "4.37.0",
    "_from_model_config": True,
    "_commit_hash": "abc",
}


@pytest.fixture
def make(tmp_path):
    """make(**values): the sample model with these in its generation_config.json."""

    def make(**values):
        folder = tmp_path / "reader"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(READER, folder)
        path = folder / SECTION
        path.write_text(json.dumps(json.loads(path.read_text()) | FEW | values))
        return folder

    return make


@pytest.fixture
def ask(tmp_path):
    """ask(folder): the exported bundle's answer about the picture, as `vlmedge run` asks."""

    def ask(folder, options=None):
        export_checkpoint(folder, tmp_path / "bundle", ExportOptions("fp32"))
        with Model.load(tmp_path / "bundle", num_threads=1) as model:
            return model.answer(QUESTION, [PICTURE], options)

    return ask


@pytest.fixture(scope="module")
def transformers_answers():
    """transformers_answers(folder): token ids by its generation settings."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(READER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(READER)
    template = json.loads((READER / "chat_template.json").read_text())["chat_template"]
    pixels = Qwen2VLImageProcessorPil.from_pretrained(READER)(
        images=[Image.open(PICTURE).convert("RGB")], return_tensors="pt"
    )
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    num_visual = int(pixels["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * num_visual)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    inputs["mm_token_type_ids"] = (ids == 468).int()

    def answer(folder):
        if (folder / SECTION).exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        else:
            model.generation_config = GenerationConfig.from_pretrained(
                folder, config_file_name="config.json", _from_model_config=True
            )
        with torch.inference_mode():
            out = model.generate(**inputs, tokenizer=tokenizer)
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        new_ids = sequences[0, ids.shape[1] :].tolist()
        return tuple(new_ids), tokenizer.decode(new_ids, skip_special_tokens=True)

    return answer


def test_every_key_of_transformers_has_one_rule_and_one_test_here():
    known = set(GenerationConfig().__dict__)
    keys = [rule.key for rule in RULES]
    assert known <= set(keys)
    assert len(keys) == len(set(keys))
    tested = {
        "honoured": {*CHANGED, *INVISIBLE, *SAMPLED},
        "refused": set(REFUSED),
        "no effect": set(NO_EFFECT),
    }
    for treatment, names in tested.items():
        keys = {rule.key for rule in RULES if rule.treatment == treatment}
        # What isn't of the class are arguments of generate(), tested below
        assert keys & (known | {"_commit_hash"}) == names


@pytest.mark.parametrize("key", [*CHANGED, *INVISIBLE])
def test_an_honoured_key_gives_the_answer_of_transformers(make, ask, transformers_answers, key):
    folder = make(**(CHANGED | INVISIBLE)[key])
    needed, text = transformers_answers(folder)
    answer = ask(folder)
    assert answer.token_ids == needed
    # The end token is no part of our text, even where it is an ordinary one
    assert answer.text == (text.removesuffix(".") if key == "eos_token_id" else text)
    if key in CHANGED:
        assert answer.text != ANSWER


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"suppress_tokens": [17]}, "36.49"),
        ({"no_repeat_ngram_size": 1}, "26 cost"),
        ({"min_new_tokens": 10}, "26.2900.26"),
        ({"max_new_tokens": 2}, "26"),
    ],
)
def test_settings_that_change_answers_change_ours(make, ask, values, text):
    assert ask(make(**values)).text.startswith(text)


def test_a_bundle_that_samples_keeps_every_setting_of_it(make, ask):
    values = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "top_h": 0.4,
        "typical_p": 0.7,
        "epsilon_cutoff": 0.01,
        "eta_cutoff": 0.02,
    }
    read = read_generation_defaults(make(**values), VOCAB_SIZE)
    assert {key: getattr(read, key) for key in values} == values


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
def test_a_refused_key_is_named_by_export(make, ask, key, value):
    with pytest.raises(ValueError, match=key):
        ask(make(**{key: value}))


@pytest.mark.parametrize("key", ["logits_processor", "streamer", "assistant_model"])
def test_arguments_of_generate_are_refused_as_by_transformers(make, key):
    folder = make(**{key: [1]})
    with pytest.raises(ValueError, match=key):
        GenerationConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=key):
        read_generation_defaults(folder)


# Some can't be together in one call; each group is one call of generate()
GROUPS = [
    {
        key: value
        for key, value in NO_EFFECT.items()
        if key not in ("prompt_lookup_num_tokens", "prefill_chunk_size", "output_attentions")
    },
    {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 3, "num_assistant_tokens": 3},
    {"output_attentions": True},
    {"prefill_chunk_size": 7},
]


@pytest.mark.parametrize("values", GROUPS, ids=["most", "lookup", "attentions", "chunks"])
def test_keys_without_effect_leave_the_answer(make, ask, transformers_answers, values):
    folder = make(**values)
    token_ids, text = transformers_answers(folder)
    assert text == ANSWER
    answer = ask(folder)
    assert (answer.token_ids, answer.text) == (token_ids, text)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"bad_words_ids": []}, "bad_words_ids is"),
        ({"bad_words_ids": [[480]]}, "bad_words_ids holds 480"),
        ({"bad_words_ids": [[1]] * 10_001}, "10001 sequences"),
        ({"bad_words_ids": [list(range(10))] * 10_000 + [[1] * 10]}, "sequences"),
        ({"suppress_tokens": 17}, "suppress_tokens is 17"),
        ({"sequence_bias": {"5": 1.0}}, "sequence_bias is"),
        ({"sequence_bias": []}, "sequence_bias is"),
        ({"stop_strings": [""]}, "empty string"),
        ({"stop_strings": ["x" * 5000]}, "5000 characters"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"no_repeat_ngram_size": 1.0}, "no_repeat_ngram_size is 1.0"),
        ({"do_sample": 1}, "do_sample is 1"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1"),
        ({"do_sample": True, "min_p": 7}, "min_p is 7"),
        ({"forced_eos_token_id": 5, "suppress_tokens": [5]}, "forced_eos_token_id"),
        ({"exponential_decay_length_penalty": [1.5, 2]}, "exponential_decay_length_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"remove_invalid_values": "yes"}, "remove_invalid_values is 'yes'"),
    ],
)
def test_values_that_no_answer_can_follow_are_refused_in_one_line(make, values, text):
    with pytest.raises(ValueError, match=text) as caught:
        read_generation_defaults(make(**values), VOCAB_SIZE)
    assert SECTION in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(caught.value).partition(SECTION)[0])


def test_limits_of_sampling_count_only_where_the_checkpoint_samples(make):
    found = find_generation_defaults(make(top_k=-1, min_p=7, temperature=0.0), VOCAB_SIZE)
    assert (found.value.top_k, found.value.min_p) == (0, 0.0)
    assert [remark.split()[0] for remark in found.unusual] == ["top_k", "min_p"]


def test_a_number_of_tokens_beyond_any_context_is_taken_as_transformers_takes_it(make, ask):
    assert ask(make(no_repeat_ngram_size=10**9, max_new_tokens=10**9)).text == ANSWER


def test_settings_in_config_json_count_where_there_is_no_other_file(
    make, ask, transformers_answers
):
    folder = make()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    legacy = {"suppress_tokens": [17], "max_new_tokens": 3, "eos_token_id": 464}
    path.write_text(json.dumps(config | legacy))
    found = find_generation_defaults(folder, VOCAB_SIZE)
    assert "config.json: suppress_tokens" not in found.unusual[0]
    assert "suppress_tokens" in found.unusual[0]
    assert ask(folder).text == ANSWER
    (folder / SECTION).unlink()
    needed, text = transformers_answers(folder)
    answer = ask(folder)
    assert (answer.token_ids, answer.text) == (needed, text)
    assert text == "36."
    found = find_generation_defaults(folder, VOCAB_SIZE)
    (origin,) = [one for one in found.origins if one.setting == "generation.suppress_tokens"]
    assert origin.place == "config.json: suppress_tokens"


def test_old_defaults_in_config_json_are_no_settings_and_refusals_name_the_file(make):
    folder = make()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    old = {"max_length": 20, "top_k": 50, "do_sample": False, "num_beams": 1, "temperature": 1.0}
    path.write_text(json.dumps(config | old))
    assert find_generation_defaults(folder, VOCAB_SIZE).unusual == ()
    (folder / SECTION).unlink()
    found = find_generation_defaults(folder, VOCAB_SIZE)
    assert found.value.max_length is None
    assert found.unusual == ("config.json: max_length 20 is an old default, left out",)
    path.write_text(json.dumps(config | old | {"num_beams": 4}))
    with pytest.raises(ValueError, match=r"config\.json: num_beams is 4.*beam search"):
        find_generation_defaults(folder, VOCAB_SIZE)


def test_a_file_without_settings_says_that_all_are_off(make):
    folder = make(max_new_tokens=None)
    assert read_generation_defaults(folder) == GenerationDefaults()


def test_a_request_goes_before_the_checkpoint(make, ask):
    folder = make(suppress_tokens=[17], max_new_tokens=2, stop_strings=["6"])
    options = GenerationOptions(suppress_tokens=(), max_new_tokens=9, stop=())
    assert ask(folder, options).text == ANSWER
    assert ask(folder, GenerationOptions(ignore_defaults=True)).text == ANSWER
    answer = ask(folder, GenerationOptions(min_new_tokens=8, max_new_tokens=8, stop=()))
    assert len(answer.token_ids) == 8


def test_a_prompt_longer_than_max_length_says_so(make, ask):
    with pytest.raises(ValueError, match="max_length allows 20"):
        ask(make(max_new_tokens=None, max_length=20))
    folder = make(max_new_tokens=None, max_length=20)
    assert ask(folder, GenerationOptions(max_new_tokens=9)).text == ANSWER


def test_answers_of_a_batch_follow_their_own_settings(make, ask, tmp_path):
    alone = [
        {"suppress_tokens": (17,)},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 10, "bad_words_ids": ((13,),)},
        {},
    ]
    options = [GenerationOptions(**values) for values in alone]
    needed = [ask(make(), each).token_ids for each in options]
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTION}]
    with Model.load(tmp_path / "bundle", num_threads=1) as model:
        answers = model.chat_batch([[{"role": "user", "content": content}]] * 4, options)
    assert [answer.token_ids for answer in answers] == needed
    assert len(set(needed)) == 4
