"""Tokenizer files and chat templates against transformers' own loading of the same folder."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.checkpoint.keys.tokenizer import RULES
from vlmedge.export.checkpoint.text.chat_template import find_chat_template
from vlmedge.export.checkpoint.text.tokenizer import find_tokenizer
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.verify.prompts import TransformersPrompts
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.inputs.messages import read_messages
from vlmedge.runtime.inputs.request import RequestMaker
from vlmedge.runtime.model import Model

SAMPLES = Path(__file__).parents[4] / "samples"
PICTURE = str(SAMPLES / "pictures" / "receipt-0.png")
LOOK = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": PICTURE},
            {"type": "text", "text": "What is the total?"},
        ],
    }
]
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
    *LOOK,
]


@pytest.fixture
def reader(tmp_path):
    return shutil.copytree(SAMPLES / "reader", tmp_path / "reader")


def edit(path, *, without=(), **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if key not in without}
    path.write_text(json.dumps(content))


def take_qwen2_class(reader, **change):
    """Name the model's own class, with its own cuts: transformers 5 puts them in any case."""
    edit(reader / "tokenizer_config.json", **change)
    cut = {"type": "Split", "pattern": {"Regex": PRETOKENIZE_REGEX}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    steps = [cut | {"invert": False}, byte_level | {"use_regex": False}]
    edit(reader / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def find(reader):
    return find_tokenizer(reader, read_model_spec(reader).tokens)


NAMES = ("eos_token", "pad_token", "unk_token", "bos_token")
TYPED = {"__type": "AddedToken", "special": True, "normalized": False, "single_word": False}
TYPED |= {"lstrip": False, "rstrip": False}
END = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"without": NAMES},
        {"without": NAMES, "tokenizer_class": "Qwen2Tokenizer"},
        {"without": (*NAMES, "tokenizer_class")},
        {"eos_token": None, "tokenizer_class": "Qwen2Tokenizer"},
        {"bos_token": "<|im_start|>", "unk_token": "<|endoftext|>"},
        {"mark_token": "<|vision_pad|>", "pad_token": {"content": "<|im_end|>"} | TYPED},
        {"additional_special_tokens": None, "extra_special_tokens": {"mark": "<|vision_pad|>"}},
    ],
    ids=["as it is", "none", "Qwen2's own", "no class", "null", "more", "a name", "by names"],
)
def test_templates_see_the_names_that_transformers_gives_them(reader, change):
    take_qwen2_class(reader, **change)
    found = find(reader).value.special_tokens
    assert found == AutoTokenizer.from_pretrained(reader).special_tokens_map


def test_the_older_file_of_names_counts_where_the_config_lists_no_added_tokens(reader):
    (reader / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": END | {"single_word": False}})
    )
    found = find(reader)
    assert found.value.special_tokens == AutoTokenizer.from_pretrained(reader).special_tokens_map
    places = {origin.setting: origin.place for origin in found.origins}
    assert places["special_tokens.eos_token"] == "special_tokens_map.json: eos_token"


def name_the_end_token(reader):
    path = reader / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    named = template.replace("<|im_end|>\\n' }}", "' + eos_token + '\\n' }}")
    assert named != template
    path.write_text(json.dumps({"chat_template": named}))


@pytest.mark.parametrize("messages", [LOOK, TALK], ids=["look", "talk"])
@pytest.mark.parametrize("place", ["as it is", "names its end token", "jinja", "processor"])
def test_prompts_are_those_of_transformers_wherever_the_template_is(
    reader, tmp_path, messages, place
):
    path = reader / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    other = template.replace("You are a helpful assistant.", "You read receipts.")
    assert other != template
    if place == "names its end token":
        name_the_end_token(reader)
    if place == "jinja":
        path.unlink()
        (reader / "chat_template.jinja").write_text(other)
    if place == "processor":
        edit(reader / "processor_config.json", chat_template=other)
    export_checkpoint(reader, tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    request = RequestMaker(tmp_path / "bundle", manifest, None).make(messages)
    prompts = TransformersPrompts(reader, manifest.tokens.image_pad, manifest.tokens.video_pad)
    counts = [visual.num_tokens for visual in request.visuals]
    assert request.input_ids.tolist() == prompts.encode(read_messages(messages), counts)


def test_a_template_that_names_its_end_token_answers_rightly(reader, tmp_path):
    name_the_end_token(reader)
    export_checkpoint(reader, tmp_path / "bundle")
    with Model.load(tmp_path / "bundle", num_threads=1) as model:
        assert model.chat(LOOK).text == "26.29"


def test_pads_that_are_not_marked_as_special_export_and_answer(reader, tmp_path):
    path = reader / "tokenizer.json"
    raw = json.loads(path.read_text())
    for token in raw["added_tokens"]:
        token["special"] = token["content"] != "<|image_pad|>"
    path.write_text(json.dumps(raw))
    assert "<|image_pad|> not marked as special" in find(reader).unusual[0]
    export_checkpoint(reader, tmp_path / "bundle")
    with Model.load(tmp_path / "bundle", num_threads=1) as model:
        assert model.chat(LOOK).text == "26.29"


def test_the_tokenizers_end_token_ends_answers_where_no_config_names_one(reader):
    edit(reader / "config.json", without=("eos_token_id",))
    edit(reader / "generation_config.json", without=("eos_token_id",))
    tokenizer = AutoTokenizer.from_pretrained(reader)
    assert read_model_spec(reader).tokens.eos == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("side", ["lstrip", "rstrip", "single_word"])
def test_a_special_token_that_takes_its_surroundings_is_refused_by_export(reader, tmp_path, side):
    path = reader / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["added_tokens"][0][side] = True
    path.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="asks for lstrip, rstrip or single_word"):
        export_checkpoint(reader, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_template_of_texts_alone_is_refused_by_export(reader, tmp_path):
    """As transformers reads a folder, chat_template.json counts before chat_template.jinja."""
    text_only = "{% for m in messages %}{{ m['content'] if m['content'] is string }}{% endfor %}"
    (reader / "chat_template.jinja").write_text(text_only)
    assert "another chat template" in find_chat_template(reader).unusual[0]
    (reader / "chat_template.json").unlink()
    with pytest.raises(BundleError, match="could not answer a question about a picture"):
        export_checkpoint(reader, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_bos_token", True),
        ("add_eos_token", True),
        ("add_prefix_space", True),
        ("split_special_tokens", True),
        ("do_lower_case", True),
        ("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True),
    ],
)
def test_what_would_change_texts_is_refused_by_name(reader, key, value):
    edit(reader / "tokenizer_config.json", **{key: value})
    with pytest.raises(ValueError, match=f"{key} is True, which is refused"):
        find(reader)
    refused = {rule.key for rule in RULES if rule.treatment == "refused"}
    assert key in refused


def test_another_class_of_tokenizer_is_refused(reader):
    edit(reader / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    with pytest.raises(ValueError, match="tokenizer_class is 'GPT2Tokenizer', which is refused"):
        find(reader)


def test_a_special_token_must_have_a_name_that_templates_can_use(reader):
    edit(
        reader / "tokenizer_config.json",
        without=("additional_special_tokens",),
        extra_special_tokens={"messages": "<|vision_pad|>"},
    )
    with pytest.raises(ValueError, match="a special token has the name 'messages'"):
        find(reader)


def test_further_templates_count_as_in_transformers(reader):
    more = reader / "additional_chat_templates"
    more.mkdir()
    (more / "default.jinja").write_text("d")
    with pytest.raises(ValueError, match=r"has both chat_template\.json and additional_chat"):
        find_chat_template(reader)
    with pytest.raises(ValueError, match="conflicting files"):
        TransformersPrompts(reader, 468, 469)
    (reader / "chat_template.json").unlink()
    assert find_chat_template(reader).value == TransformersPrompts(reader, 468, 469).template == "d"
    (more / "default.jinja").rename(more / "tools.jinja")
    with pytest.raises(ValueError, match=r"has tools\.jinja, and none is the default"):
        find_chat_template(reader)
    (reader / "chat_template.jinja").write_text("j")
    assert find_chat_template(reader).value == TransformersPrompts(reader, 468, 469).template == "j"


@pytest.mark.parametrize("token", ["<|vision_start|>", "<|vision_end|>"])
def test_a_template_that_leaves_a_picture_without_delimiters_is_refused(reader, tmp_path, token):
    path = reader / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    path.write_text(json.dumps({"chat_template": template.replace(token, "")}))
    with pytest.raises(BundleError, match="between one vision start and one vision end"):
        export_checkpoint(reader, tmp_path / "bundle")


def test_a_template_that_asks_for_numbers_of_pictures_sees_them_only_when_asked(reader, tmp_path):
    path = reader / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    asked = "{{ 'Numbers.' if add_vision_id is defined }}" + template
    path.write_text(json.dumps({"chat_template": asked}))
    export_checkpoint(reader, tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    request = RequestMaker(tmp_path / "bundle", manifest, None).make(LOOK)
    prompts = TransformersPrompts(reader, 468, 469)
    needed = prompts.encode(read_messages(LOOK), [v.num_tokens for v in request.visuals])
    assert request.input_ids.tolist() == needed


WITHOUT_EFFECT = {
    "additional_special_tokens": ["<|vision_pad|>"],
    "model_max_length": 3,
    "padding_side": "left",
    "truncation_side": "left",
    "clean_up_tokenization_spaces": True,
    "errors": "strict",
    "model_input_names": ["input_ids"],
    "use_fast": False,
    "legacy": True,
    "verbose": True,
}


def test_keys_without_effect_change_no_ids_in_transformers_either(reader):
    text = "<|im_start|>user\nTotal , is it 26.29 ?<|im_end|>"
    before = AutoTokenizer.from_pretrained(reader)
    ids = before(text)["input_ids"]
    edit(reader / "tokenizer_config.json", **WITHOUT_EFFECT)
    after = AutoTokenizer.from_pretrained(reader)
    assert after(text)["input_ids"] == ids
    assert after.decode(ids) == before.decode(ids)
    assert find(reader).value == find(SAMPLES / "reader").value
    treatments = {rule.key: rule.treatment for rule in RULES}
    there_already = {"additional_special_tokens"}
    assert {treatments[key] for key in WITHOUT_EFFECT.keys() - there_already} == {"no effect"}


def test_every_key_that_transformers_saves_or_takes_has_a_rule(reader, tmp_path):
    rules = {rule.key for rule in RULES}
    AutoTokenizer.from_pretrained(reader).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved.keys() <= rules
    import inspect

    taken = set(inspect.signature(Qwen2Tokenizer.__init__).parameters) - {"self", "kwargs"}
    assert taken | set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES) <= rules
