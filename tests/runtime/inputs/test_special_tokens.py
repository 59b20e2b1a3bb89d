"""Special tokens in prompts and answers, where a request asks for them."""

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.bundle.generation_defaults import GenerationDefaults
from vlmedge.runtime.decode.writer import make_writer
from vlmedge.runtime.errors import PromptError
from vlmedge.runtime.inputs.messages import read_messages
from vlmedge.runtime.inputs.prompt import ChatTemplate
from vlmedge.runtime.inputs.tokens import StreamDecoder
from vlmedge.runtime.options import GenerationOptions

# Fixtures are read-only here: sharing them between examples is fine.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ALLOWED = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
FRAGMENTS = [
    *ALLOWED,
    "<|im_end|>",
    "<|im_start|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|",
    "|>",
    "<|im_",
    "end|>",
    "<",
    ">",
    "box_start",
    "\n",
    " a",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join)


def encode(template, text, allowed):
    messages = read_messages([{"role": "user", "content": text}])
    return template.encode(messages, (), allowed=allowed).tolist()


@SHARED
@given(pieces=st.lists(st.sampled_from([*ALLOWED, " the ", "dog", "(1,2)", "é"]), max_size=8))
def test_allowed_tokens_are_the_ids_that_transformers_reads(template, reference_tokenizer, pieces):
    text = "".join(pieces)
    rendered = reference_tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    needed = reference_tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert encode(template, text, ALLOWED) == needed


@SHARED
@given(text=TEXTS, allowed=st.lists(st.sampled_from(ALLOWED), unique=True))
def test_no_other_token_gets_into_a_prompt_beside_the_allowed(template, tokenizer, text, allowed):
    others = {i for name, i in tokenizer.control.items() if name not in allowed}
    harmless = encode(template, "x", ())
    ids = encode(template, text, allowed)
    assert [i for i in ids if i in others] == [i for i in harmless if i in others]
    spelled = tokenizer.decode(ids, keep_special=True)
    assert unicodedata.normalize("NFC", text) in unicodedata.normalize("NFC", spelled)


def test_tokens_are_text_unless_they_are_allowed(template, tokenizer):
    box = tokenizer.control["<|box_start|>"]
    assert box not in encode(template, "<|box_start|>", ())
    assert box not in encode(template, "<|box_start|>", ["<|box_end|>"])
    assert encode(template, "<|box_start|>", ["<|box_start|>"]).count(box) == 1


@pytest.mark.parametrize(
    "name",
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ],
)
def test_what_structures_a_prompt_can_not_be_allowed(template, name):
    with pytest.raises(PromptError, match=r"can't be allowed.*box_start"):
        encode(template, "x", [name])


@pytest.mark.parametrize("names", [["<|boxes|>"], [""], [3], "<|box_start|>", [None, "<|x|>"]])
def test_an_unknown_token_is_named_with_those_that_there_are(template, names):
    with pytest.raises(PromptError, match="allowed_special_tokens"):
        encode(template, "x", names)


def test_a_token_inside_a_reserved_one_can_not_be_allowed(token_ids):
    names = {"<|im_end|>": 1, "im": 2}
    tokenizer = SimpleNamespace(control=names)
    ids = SimpleNamespace(
        vision_start=5, vision_end=6, image_pad=7, video_pad=8, pad=1, eos=(1,), names=names
    )
    with pytest.raises(PromptError, match="im can't be allowed"):
        ChatTemplate("{{ messages }}", tokenizer, ids).check_allowed(["im"])


@SHARED
@given(data=st.data())
def test_kept_tokens_stream_as_transformers_decodes_them(tokenizer, reference_tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, 330), max_size=12))
    decoder = StreamDecoder(tokenizer, keep_special=True)
    text = "".join(map(decoder.push, ids)) + decoder.flush()
    assert text == reference_tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def write(tokenizer, token_ids, ids, options, defaults=None, prompt_ids=(1, 2)):
    """An answer of these ids."""
    left = list(ids)
    sampler = SimpleNamespace(pick=lambda logits: left.pop(0))
    writer = make_writer(
        sampler,
        tokenizer,
        options,
        defaults or GenerationDefaults(),
        token_ids.eos,
        np.array(prompt_ids),
        len(ids),
    )
    pieces = []
    while writer.finish_reason is None:
        pieces.append(writer.write(np.zeros(3)))
    assert "".join(pieces) == writer.text
    return writer


def test_an_answer_keeps_its_boxes_but_not_the_token_that_ends_it(tokenizer, token_ids):
    start, end = tokenizer.control["<|box_start|>"], tokenizer.control["<|box_end|>"]
    ids = [start, *tokenizer.encode_text("(1,2)"), end, token_ids.eos[0]]
    kept = write(tokenizer, token_ids, ids, GenerationOptions(skip_special_tokens=False))
    assert kept.text == "<|box_start|>(1,2)<|box_end|>"
    assert write(tokenizer, token_ids, ids, GenerationOptions()).text == "(1,2)"


def test_the_checkpoints_stop_string_stays_and_the_requests_own_is_cut(tokenizer, token_ids):
    ids = [*tokenizer.encode_text("the total is 12.50"), token_ids.eos[0]]
    defaults = GenerationDefaults(stop_strings=("1",))
    writer = write(tokenizer, token_ids, ids, GenerationOptions(), defaults)
    assert (writer.text, writer.finish_reason) == ("the total is 1", "stop")
    writer = write(tokenizer, token_ids, ids, GenerationOptions(stop=("is",)), defaults)
    assert (writer.text, writer.finish_reason) == ("the total ", "stop")
    for options in (GenerationOptions(stop=()), GenerationOptions(ignore_defaults=True)):
        assert write(tokenizer, token_ids, ids, options, defaults).text == "the total is 12.50"


def test_a_stop_string_may_begin_in_the_prompt(tokenizer, token_ids):
    prompt_ids, ids = tokenizer.encode_text("so\n"), tokenizer.encode_text("the total")
    defaults = GenerationDefaults(stop_strings=("\nth",))
    writer = write(tokenizer, token_ids, ids, GenerationOptions(), defaults, prompt_ids)
    assert writer.finish_reason == "stop"
    assert len(writer.token_ids) < len(ids)
