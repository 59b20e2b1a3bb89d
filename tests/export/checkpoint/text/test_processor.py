"""Tokenizer, template, pixel budget and sampling defaults, wherever checkpoints keep them."""

import json

import pytest

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.checkpoint.generation import read_generation_defaults
from vlmedge.export.checkpoint.pixels import read_pixel_budget
from vlmedge.export.checkpoint.text.chat_template import find_chat_template, read_chat_template
from vlmedge.export.checkpoint.text.tokenizer import read_tokenizer
from vlmedge.export.exporter import prepare
from vlmedge.runtime.bundle.manifest import GenerationDefaults


def write(path, content):
    path.write_text(json.dumps(content))


def edit(path, **changes):
    write(path, json.loads(path.read_text()) | changes)


def test_the_tokenizer_is_copied_byte_by_byte(checkpoint):
    assert (
        read_tokenizer(checkpoint, read_model_spec(checkpoint).tokens)
        == (checkpoint / "tokenizer.json").read_bytes()
    )


def test_a_slow_tokenizer_says_how_to_make_the_fast_one(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json; copy it"):
        read_tokenizer(checkpoint, read_model_spec(checkpoint).tokens)
    (checkpoint / "vocab.json").touch()
    (checkpoint / "merges.txt").touch()
    with pytest.raises(ValueError, match=r"AutoTokenizer\.from_pretrained"):
        read_tokenizer(checkpoint, read_model_spec(checkpoint).tokens)


def test_a_tokenizer_that_the_runtime_would_refuse_is_refused(checkpoint):
    tokens = read_model_spec(checkpoint).tokens
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    for added in ([], [t | {"id": t["id"] + 1000} for t in content["added_tokens"]], None, [1]):
        edit(path, added_tokens=added)
        with pytest.raises(ValueError, match=rf"vision_start id {tokens.vision_start}"):
            read_tokenizer(checkpoint, tokens)


def test_a_chat_template_with_a_syntax_error_is_refused(checkpoint):
    (checkpoint / "chat_template.json").unlink()
    edit(checkpoint / "tokenizer_config.json", chat_template="{% for m in messages %}")
    with pytest.raises(ValueError, match="the chat template does not compile"):
        read_chat_template(checkpoint)


def test_a_chat_template_is_found_in_all_its_places(checkpoint):
    (checkpoint / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        read_chat_template(checkpoint)
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    edit(checkpoint / "tokenizer_config.json", chat_template=named)
    assert read_chat_template(checkpoint) == "d"
    edit(checkpoint / "tokenizer_config.json", chat_template="c")
    assert read_chat_template(checkpoint) == "c"
    (checkpoint / "chat_template.jinja").write_text("b\n")
    assert read_chat_template(checkpoint) == "b\n"
    write(checkpoint / "chat_template.json", {"chat_template": "a"})
    assert read_chat_template(checkpoint) == "a"
    write(checkpoint / "processor_config.json", {"chat_template": {"default": "p"}})
    found = find_chat_template(checkpoint)
    assert found.value == "p"
    assert [remark.partition(":")[0] for remark in found.unusual] == [
        "chat_template.json",
        "chat_template.jinja",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"min_pixels": 100, "max_pixels": 200}, (100, 200)),
        ({"size": {"shortest_edge": 100, "longest_edge": 200}}, (100, 200)),
        ({"size": {"min_pixels": 100, "max_pixels": 200}}, (100, 200)),
        (
            {
                "min_pixels": None,
                "size": {"shortest_edge": 100, "longest_edge": 9},
                "max_pixels": 200,
            },
            (100, 200),
        ),
        ({}, (3136, 1003520)),
        (None, (3136, 1003520)),
    ],
)
def test_the_pixel_budget_is_read_in_every_form(checkpoint, config, limits):
    path = checkpoint / "preprocessor_config.json"
    path.unlink()
    if config is not None:
        write(path, config)
    budget = read_pixel_budget(checkpoint, read_model_spec(checkpoint))
    assert (budget.min_pixels, budget.max_pixels) == limits
    assert budget.image_mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    "config",
    [
        {"min_pixels": 0},
        {"max_pixels": "big"},
        {"max_pixels": True},
        {"min_pixels": 300, "max_pixels": 200},
        {"image_std": [1, 0, 1]},
        {"image_mean": [1, 1]},
        {"image_mean": "clip"},
        {"size": {"shortest_edge": 100}},
        {"size": 784},
        {"resample": 9},
        {"resample": True},
        {"do_resize": False},
        {"do_rescale": "yes"},
        {"rescale_factor": 0},
        {"patch_size": 16},
        {"merge_size": 1},
    ],
)
def test_a_senseless_preprocessor_is_named(checkpoint, config):
    write(checkpoint / "preprocessor_config.json", config)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        read_pixel_budget(checkpoint, read_model_spec(checkpoint))


def test_sampling_defaults_are_the_checkpoints(checkpoint):
    path = checkpoint / "generation_config.json"
    write(path, {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 1.05})
    expected = GenerationDefaults(True, 0.1, 1, 1.0, 1.05)
    assert read_generation_defaults(checkpoint) == expected
    path.unlink()
    assert read_generation_defaults(checkpoint) == GenerationDefaults()
    write(path, {"temperature": "hot"})
    with pytest.raises(ValueError, match="temperature is 'hot'"):
        read_generation_defaults(checkpoint)


@pytest.mark.parametrize(
    "template",
    ["\ud800", [None, 3], [{"name": ["default"], "template": "x"}], [{"template": "x"}], {}],
)
def test_a_chat_template_of_the_wrong_kind_is_refused(tmp_path, template):
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ValueError, match="chat template"):
        read_chat_template(tmp_path)


def test_special_tokens_with_ids_of_the_wrong_kind_are_refused(checkpoint):
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["id"] = [token["id"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="another model's tokenizer"):
        prepare(checkpoint)
