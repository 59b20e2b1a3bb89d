"""An export that succeeds gives a bundle that answers: small files of all kinds of damage."""

import json
import random
import shutil

import numpy as np
import pytest

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime import GenerationOptions, Model
from vlmedge.runtime.errors import BundleError

NUM_MUTATIONS = 120
PICTURE = np.zeros((56, 56, 3), np.uint8)
JUNK = (None, -1, 0, 2**40, 1.5, True, "", "x", "{% if %}", [], {}, [None], {"type": "Lowercase"})
TOKENS = ("<|image_pad|>", "<|vision_start|>", "<|im_end|>", "image", "content", "{%", "}}", "part")


def list_places(value, path=()):
    """Every place in some JSON, but not each entry of a long vocabulary."""
    yield path
    entries = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value) if isinstance(value, list) else entries
    for key, item in list(entries)[:40]:
        yield from list_places(item, (*path, key))


def mutate_json(content, rng):
    *path, last = rng.choice([place for place in list_places(content) if place])
    parent = content
    for key in path:
        parent = parent[key]
    if rng.random() < 0.4:
        del parent[last]
    else:
        parent[last] = rng.choice(JUNK)
    return content


def mutate_text(text, rng):
    start = rng.randrange(len(text))
    stop = min(len(text), start + rng.randrange(1, 40))
    token = rng.choice(TOKENS)
    return rng.choice(
        [
            text[:start] + text[stop:],
            text[:stop] + text[start:],
            text.replace(token, ""),
            text.replace(token, token * 2),
            text[:start],
            text[:start]
            + rng.choice(("{{ 1 // 0 }}", "{{ x.y.z }}", "{% break %}"))
            + text[start:],
        ]
    )


def damage(checkpoint, seed):
    """Change one of the small files."""
    rng = random.Random(seed)
    name = rng.choice(("tokenizer.json", "chat_template.json", "chat_template.json"))
    path = checkpoint / name
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = rng.random()
    if name == "chat_template.json" and kind < 0.9:
        content["chat_template"] = mutate_text(content["chat_template"], rng)
    elif kind < 0.9:
        content = mutate_json(content, rng)
    else:
        text = json.dumps(content)
        path.write_text(text[: rng.randrange(len(text))], encoding="utf-8")
        return
    path.write_text(json.dumps(content), encoding="utf-8")


def find_refusal(checkpoint, bundle):
    try:
        export_checkpoint(checkpoint, bundle)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("start", range(0, NUM_MUTATIONS, 40))
def test_an_export_is_refused_or_its_bundle_answers(read_only_checkpoint, tmp_path, start):
    refused = 0
    for seed in range(start, start + 40):
        checkpoint = tmp_path / f"checkpoint{seed}"
        shutil.copytree(read_only_checkpoint(), checkpoint)
        damage(checkpoint, seed)
        bundle = tmp_path / f"bundle{seed}"
        if refusal := find_refusal(checkpoint, bundle):
            refused += 1
            assert "\n" not in refusal
            assert "partial-" not in refusal  # the temporary folder is nobody's business
            assert not bundle.exists()
            continue
        with Model.load(bundle, num_threads=1) as model:
            answer = model.answer("What?", [PICTURE], options=GenerationOptions(max_new_tokens=2))
        assert answer.num_image_tokens == 4
    assert 0 < refused < 40


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("no pads", "wrote pads for"),
        ("<|image_pad|><|image_pad|>", "wrote pads for"),
        ("{{ messages[0].content + 'x' }}", "refuses these messages"),
        ("{{ 'x' * 10**10 }}<|image_pad|>", "too large a value"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{{ raise_exception('no pictures here') }}", "no pictures here"),
    ],
)
def test_a_template_that_shows_no_picture_is_refused(checkpoint, tmp_path, template, reason):
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(BundleError, match=rf"\(chat_template.jinja\): .*{reason}"):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    target = LoweringOptions("jetpack-6.2", "fp16")
    with pytest.raises(BundleError, match=reason):
        export_for_target(checkpoint, tmp_path / "bundle", target)
    assert not (tmp_path / "bundle").exists()


def test_a_tokenizer_that_would_lose_bytes_is_refused(checkpoint, tmp_path):
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["model"]["vocab"]["a"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=r"\(tokenizer.json\): .* no token for the byte 0x61"):
        export_checkpoint(checkpoint, tmp_path / "bundle")


def test_a_refused_export_leaves_the_old_bundle(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "bundle")
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": "no pads"}))
    with pytest.raises(BundleError):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    with Model.load(tmp_path / "bundle", num_threads=1) as model:
        options = GenerationOptions(max_new_tokens=1)
        assert model.answer("What?", [PICTURE], options=options).token_ids


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'video' %}"
        "{{ raise_exception('no clips') }}{% elif p.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|vision_start|><|image_pad|><|vision_end|>{{ messages[0].content[1].text }}",
    ],
)
def test_a_template_may_know_no_clips_and_no_system_message(checkpoint, tmp_path, template):
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    export_checkpoint(checkpoint, tmp_path / "bundle")
