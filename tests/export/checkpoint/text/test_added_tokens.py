"""Tokens that the files beside tokenizer.json add, against transformers' own loading."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.checkpoint.text.pipeline import QWEN2_CUTS
from vlmedge.export.checkpoint.text.tokenizer import find_tokenizer
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.planning.sources import open_model
from vlmedge.export.verify.prompts import TransformersPrompts
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.inputs.messages import read_messages
from vlmedge.runtime.inputs.request import RequestMaker

SAMPLES = Path(__file__).parents[4] / "samples"
PICTURE = str(SAMPLES / "pictures" / "receipt-0.png")
PARTS = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is the total?"}]
LOOK = [{"role": "user", "content": PARTS}]


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


NEW = {"content": "<|new|>", "lstrip": False, "rstrip": False, "normalized": False}
NEW |= {"single_word": False, "special": True}


def list_own(reader, **flags):
    """tokenizer.json's added tokens as tokenizer_config.json lists them; flags for one."""
    added = json.loads((reader / "tokenizer.json").read_text())["added_tokens"]
    listed = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
    listed["467"] |= flags
    return listed


def change_listed(reader):
    edit(reader / "tokenizer_config.json", added_tokens_decoder=list_own(reader) | {"470": NEW})


def change_flags(reader):
    listed = list_own(reader, special=False, normalized=True)
    edit(reader / "tokenizer_config.json", added_tokens_decoder=listed)


def change_extra(reader):
    edit(reader / "tokenizer_config.json", additional_special_tokens=["<|im_end|>", "<|new|>"])


def change_extra_names(reader):
    path = reader / "tokenizer_config.json"
    edit(path, without=("additional_special_tokens",), extra_special_tokens={"new": "<|new|>"})


def change_name(reader):
    edit(reader / "tokenizer_config.json", bos_token="<|new|>")


def change_own_name(reader):
    edit(reader / "tokenizer_config.json", new_token="<|new|>")


def change_legacy(reader):
    (reader / "added_tokens.json").write_text(json.dumps({"<|new|>": 470}))


def change_map(reader):
    edit(reader / "tokenizer_config.json", without=("additional_special_tokens",))
    tokens = json.dumps({"additional_special_tokens": ["<|new|>"]})
    (reader / "special_tokens_map.json").write_text(tokens)


def change_own_class(reader):
    take_qwen2_class(reader, tokenizer_class="Qwen2Tokenizer")
    change_extra(reader)


def change_own_class_listed(reader):
    take_qwen2_class(reader, tokenizer_class="Qwen2TokenizerFast")
    change_listed(reader)


CHANGES = [
    *(change_listed, change_flags, change_extra, change_extra_names, change_name),
    *(change_own_name, change_legacy, change_map, change_own_class, change_own_class_listed),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_tokens_of_the_other_files_have_the_ids_that_transformers_gives_them(
    reader, tmp_path, change
):
    change(reader)
    text = "<|im_start|>a<|new|> <|vision_pad|>\u0338it's  12\n<|endoftext|>"
    needed = AutoTokenizer.from_pretrained(reader)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(find(reader).value.content)
    got = Tokenizer.from_file(str(path))
    ids = got.encode(text, add_special_tokens=False).ids
    assert ids == needed(text)["input_ids"]
    assert {i: repr(t) for i, t in got.get_added_tokens_decoder().items()} == {
        i: repr(t) for i, t in needed.added_tokens_decoder.items()
    }
    assert find(reader).unusual[-1].startswith("tokenizer.json: tokens of the files beside it")


def test_a_tokenizer_with_nothing_to_add_is_taken_byte_for_byte(reader):
    edit(reader / "tokenizer_config.json", added_tokens_decoder=list_own(reader))
    found = find(reader)
    assert found.value.content == (reader / "tokenizer.json").read_bytes()
    assert found.unusual == ()
    take_qwen2_class(reader, tokenizer_class="Qwen2Tokenizer")
    assert find(reader).value.content == (reader / "tokenizer.json").read_bytes()


def test_a_prompt_has_the_new_token_that_its_template_writes(reader, tmp_path):
    change_extra(reader)
    path = reader / "chat_template.json"
    edit(path, chat_template="<|new|>" + json.loads(path.read_text())["chat_template"])
    export_checkpoint(reader, tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    request = RequestMaker(tmp_path / "bundle", manifest, None).make(LOOK)
    prompts = TransformersPrompts(reader, manifest.tokens.image_pad, manifest.tokens.video_pad)
    needed = prompts.encode(read_messages(LOOK), [v.num_tokens for v in request.visuals])
    assert request.input_ids.tolist() == needed
    assert needed[0] == 470


def test_a_token_whose_id_versions_of_transformers_see_differently_is_refused(reader):
    take_qwen2_class(reader, tokenizer_class="Qwen2Tokenizer")
    listed = list_own(reader)
    del listed["467"]
    edit(reader / "tokenizer_config.json", added_tokens_decoder=listed)
    assert AutoTokenizer.from_pretrained(reader).convert_tokens_to_ids("<|image_pad|>") != 468
    with pytest.raises(
        ValueError, match=r"'<\|vision_pad\|>' as token 467, transformers 5 makes it"
    ):
        find(reader)


def test_flags_of_the_config_count_before_those_of_the_tokenizer(reader, tmp_path):
    listed = list_own(reader, rstrip=True)
    edit(reader / "tokenizer_config.json", added_tokens_decoder=listed)
    with pytest.raises(BundleError, match=r"'<\|vision_pad\|>' asks for lstrip, rstrip"):
        export_checkpoint(reader, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, "pre_tokenizer"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer"),
        ({"model": {"ignore_merges": True}}, "model"),
    ],
)
def test_a_pipeline_that_transformers_5_replaces_is_refused_by_name(reader, changes, part):
    if changes:
        take_qwen2_class(reader)
    path = reader / "tokenizer.json"
    model = json.loads(path.read_text())["model"] | changes.get("model", {})
    edit(path, **(changes | {"model": model}))
    edit(reader / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    text = "'st \uff12"
    by_file = AutoTokenizer.from_pretrained(reader)(text)["input_ids"]
    find(reader)
    edit(reader / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(ValueError, match=f"{part} is not that of Qwen2Tokenizer"):
        find(reader)
    if part != "model":
        assert AutoTokenizer.from_pretrained(reader)(text)["input_ids"] != by_file


def test_a_tokenizer_that_adds_tokens_to_every_text_is_refused(reader):
    end = {"id": "<|endoftext|>", "ids": [462], "tokens": ["<|endoftext|>"]}
    steps = [
        {"SpecialToken": {"id": end["id"], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    processor = {"type": "TemplateProcessing", "single": steps, "pair": steps}
    tokens = {"special_tokens": {end["id"]: end}}
    edit(reader / "tokenizer.json", post_processor=processor | tokens)
    assert AutoTokenizer.from_pretrained(reader)("a")["input_ids"][0] == 462
    with pytest.raises(ValueError, match="post_processor adds 1 tokens to every text"):
        find(reader)


def test_a_tokenizer_that_draws_its_cuts_by_chance_is_refused(reader):
    path = reader / "tokenizer.json"
    edit(path, model=json.loads(path.read_text())["model"] | {"dropout": 0.3})
    with pytest.raises(ValueError, match=r"dropout is 0\.3, by which a text has other tokens"):
        find(reader)


def test_the_cuts_are_those_of_transformers():
    assert QWEN2_CUTS == PRETOKENIZE_REGEX


def test_a_plan_counts_by_the_tokenizer_and_names_that_an_export_takes(reader):
    path = reader / "tokenizer.json"
    raw = json.loads(path.read_text())
    for token in raw["added_tokens"]:
        token["special"] = token["content"] != "<|image_pad|>"
    path.write_text(json.dumps(raw))
    before = open_model(SAMPLES / "reader").count
    edit(reader / "tokenizer_config.json", mark_token="<|vision_pad|>")
    template = json.loads((reader / "chat_template.json").read_text())["chat_template"]
    edit(reader / "chat_template.json", chat_template="{{ mark_token }}" + template)
    assert open_model(reader).count([7], []) == before([7], []) + 1
