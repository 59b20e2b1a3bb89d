import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.errors import BundleError
from vlmedge.runtime.inputs.tokens import StreamDecoder, TextTokenizer

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
VOCAB_SIZE = 400
# Every id of the tokenizer, special ones too, and some beyond it that only the model's table has.
ANY_IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=24)


@SHARED
@given(text=st.text())
def test_text_encodes_as_in_transformers(tokenizer, reference_tokenizer, text):
    needed = reference_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_text(text) == needed


def test_special_tokens_in_text_encode_as_text(tokenizer):
    ids = tokenizer.encode_text("a<|im_end|><|image_pad|>")
    assert not set(ids) & set(tokenizer.control.values())
    assert tokenizer.decode(ids) == "a<|im_end|><|image_pad|>"


@SHARED
@given(token_ids=ANY_IDS)
def test_streamed_pieces_add_up_to_decoding_at_once(tokenizer, token_ids):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token_id) for token_id in token_ids]
    assert "".join([*pieces, decoder.flush()]) == tokenizer.decode(token_ids)


@SHARED
@given(token_ids=ANY_IDS)
def test_decoding_equals_transformers(tokenizer, reference_tokenizer, token_ids):
    needed = reference_tokenizer.decode(token_ids, skip_special_tokens=True)
    assert tokenizer.decode(token_ids) == needed


def test_a_character_of_several_tokens_comes_whole(tokenizer):
    token_ids = tokenizer.encode_text("é🙂漢")
    assert len(token_ids) > 3  # the small vocabulary spells them in bytes
    decoder = StreamDecoder(tokenizer)
    pieces = [piece for i in token_ids if (piece := decoder.push(i))]
    assert pieces == ["é", "🙂", "漢"]


def test_another_checkpoints_tokenizer_is_a_bundle_error(tokenizer_file, token_ids):
    wrong = dataclasses.replace(token_ids, image_pad=5)
    with pytest.raises(BundleError, match="image_pad id 5"):
        TextTokenizer(tokenizer_file, wrong, VOCAB_SIZE)


def test_a_tokenizer_larger_than_the_table_is_a_bundle_error(tokenizer_file, token_ids):
    with pytest.raises(BundleError, match="token ids"):
        TextTokenizer(tokenizer_file, token_ids, 10)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": 3}', "\x00"])
def test_a_damaged_tokenizer_is_a_bundle_error(tmp_path, token_ids, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TextTokenizer(path, token_ids, VOCAB_SIZE)


def test_a_tokenizer_that_is_not_byte_level_is_a_bundle_error(tmp_path, tokenizer_file, token_ids):
    raw = json.loads(tokenizer_file.read_text())
    raw["decoder"] = {"type": "Fuse"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="byte-level"):
        TextTokenizer(path, token_ids, VOCAB_SIZE)


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path, tokenizer_file, token_ids):
    raw = json.loads(tokenizer_file.read_text())
    raw["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    raw["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    tokenizer = TextTokenizer(path, token_ids, VOCAB_SIZE)
    assert tokenizer.decode(tokenizer.encode_text("one two three")) == "one two three"


def test_a_special_token_that_eats_spaces_is_refused(tmp_path, tokenizer_file, token_ids):
    raw = json.loads(tokenizer_file.read_text())
    raw["added_tokens"][0]["lstrip"] = True
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="lstrip"):
        TextTokenizer(path, token_ids, VOCAB_SIZE)
