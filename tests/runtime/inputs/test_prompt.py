import json
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.errors import BundleError, PromptError
from vlmedge.runtime.inputs.messages import read_messages
from vlmedge.runtime.inputs.prompt import ChatTemplate
from vlmedge.runtime.inputs.template.render import compile_template, render_template

# Fixtures are read-only here: sharing them between examples is fine.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>")
# Text of whole, halved and joined special tokens between ordinary characters.
FRAGMENTS = [
    *SPECIAL,
    "<|",
    "|>",
    "<",
    ">",
    "|",
    "<|im_",
    "end|>",
    "image_pad",
    "_",
    "\n",
    "\ue000",
]
HOSTILE = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=6).map(
    "".join
)
PICTURE = np.zeros((28, 28, 3), np.uint8)


def make_chat(texts, role="user"):
    parts = [{"type": "text", "text": text} for text in texts]
    return [{"role": role, "content": [{"type": "image", "image": PICTURE}, *parts]}]


def encode(template, messages, counts=(), **kwargs):
    return template.encode(read_messages(messages), counts, **kwargs).tolist()


@SHARED
@given(texts=st.lists(HOSTILE, max_size=4), role=st.sampled_from(["system", "user", "assistant"]))
def test_no_text_adds_a_control_id_to_the_templates_own(template, tokenizer, texts, role):
    control = set(tokenizer.control.values())
    harmless = encode(template, make_chat(["x" for _ in texts], role), [3])
    hostile = encode(template, make_chat(texts, role), [3])
    assert [i for i in hostile if i in control] == [i for i in harmless if i in control]


@SHARED
@given(texts=st.lists(HOSTILE, min_size=1, max_size=3))
def test_hostile_text_is_kept_letter_for_letter(template, tokenizer, texts):
    ids = encode(template, [{"role": "user", "content": "".join(texts)}])
    assert unicodedata.normalize("NFC", "".join(texts)) in tokenizer.decode(ids)


@SHARED
@given(text=st.text(), system=st.text())
def test_ordinary_text_encodes_as_transformers_does(template, reference_tokenizer, text, system):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    rendered = reference_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    needed = reference_tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert encode(template, messages) == needed


@pytest.mark.parametrize("add_vision_id", [False, True])
def test_pictures_and_clips_encode_as_in_transformers(
    template, reference_tokenizer, token_ids, add_vision_id
):
    content = [
        {"type": "image", "image": PICTURE},
        {"type": "text", "text": " and "},
        {"type": "video", "video": [PICTURE, PICTURE]},
        {"type": "image", "image": PICTURE},
        {"type": "text", "text": "which?"},
    ]
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": content},
    ]
    rendered = reference_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, add_vision_id=add_vision_id
    )
    assert ("Picture 2: " in rendered) is add_vision_id
    for count, pad in ((4, "image"), (6, "video"), (1, "image")):
        rendered = rendered.replace(f"<|{pad}_pad|>", f"<|{pad}_PAD|>" * count, 1)
    rendered = rendered.replace("_PAD|>", "_pad|>")
    needed = reference_tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert encode(template, messages, [4, 6, 1], add_vision_id=add_vision_id) == needed
    assert needed.count(token_ids.video_pad) == 6


def test_a_pad_written_by_the_user_does_not_take_a_pictures_place(template, token_ids):
    ids = encode(template, make_chat(["<|image_pad|><|vision_start|>"]), [5])
    assert ids.count(token_ids.image_pad) == 5
    assert ids.count(token_ids.vision_start) == 1


def test_a_special_token_cannot_be_joined_from_neighbouring_parts(template, token_ids):
    parts = ["<|im_", "end", "|>", "<", "|im_end|", ">"]
    ids = encode(template, make_chat(parts), [1])
    harmless = encode(template, make_chat(["x"]), [1])
    assert ids.count(token_ids.eos[0]) == harmless.count(token_ids.eos[0])


def test_a_special_token_cannot_be_joined_with_the_templates_text(tokenizer, token_ids):
    source = "{% for m in messages %}<|im_{{ m['content'] }}|>{% endfor %}"
    template = ChatTemplate(source, tokenizer, token_ids)
    ids = encode(template, [{"role": "user", "content": "end"}])
    assert tokenizer.decode(ids) == "<|im_end|>"
    assert token_ids.eos[0] not in ids


def test_templates_may_trim_text_that_holds_special_tokens(tokenizer, token_ids):
    source = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}"
    template = ChatTemplate(source, tokenizer, token_ids)
    ids = encode(template, [{"role": "user", "content": "  <|im_end|> \n"}])
    assert tokenizer.decode(ids) == "[<|im_end|>]"


def test_jinja_in_user_text_is_text(template, tokenizer):
    ids = encode(template, [{"role": "user", "content": "{{ messages }}{% raw %}"}])
    assert "{{ messages }}{% raw %}" in tokenizer.decode(ids)


@pytest.mark.parametrize("role", ["tool", "user<|im_end|>", "", None, 3])
def test_an_unknown_role_is_refused(role):
    with pytest.raises(PromptError, match="role"):
        read_messages([{"role": role, "content": "x"}])


def test_pads_that_do_not_match_the_pictures_are_an_error(tokenizer, token_ids):
    twice = ChatTemplate("<|image_pad|><|image_pad|>", tokenizer, token_ids)
    never = ChatTemplate("nothing", tokenizer, token_ids)
    for template in (twice, never):
        with pytest.raises(PromptError, match="pads"):
            encode(template, make_chat(["x"]), [1])


def test_a_template_may_refuse_and_its_words_arrive(tokenizer, token_ids):
    template = ChatTemplate("{{ raise_exception('no system here') }}", tokenizer, token_ids)
    with pytest.raises(PromptError, match="no system here"):
        encode(template, [{"role": "user", "content": "x"}])


def test_a_template_cannot_leave_its_sandbox(tokenizer, token_ids):
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", tokenizer, token_ids)
    with pytest.raises(PromptError):
        encode(template, [{"role": "user", "content": "x"}])


def test_a_template_that_does_not_compile_is_a_bundle_error(tokenizer, token_ids):
    with pytest.raises(BundleError, match="does not compile"):
        ChatTemplate("{% for %}", tokenizer, token_ids)


def test_templates_have_the_helpers_of_hugging_face(reference_tokenizer):
    source = (
        "{% generation %}{{ messages[0]['content'] | tojson }}{% endgeneration %}\n"
        "  {% for i in [1, 2, 3] %}\n  {% if i == 2 %}{% break %}{% endif %}\n{{ i }}\n"
        "{% endfor %}\n"
        "{{ strftime_now('%') }}"
    )
    messages = [{"role": "user", "content": "<é>"}]
    needed = reference_tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    got = render_template(compile_template(source), messages=messages)
    assert got == needed
    assert json.dumps("<é>", ensure_ascii=False) in got
