"""Checkpoints as trainers, mergers and newer versions leave them, each as a user meets it.

The answers are those of transformers 5.24 in float32 about the receipt whose total is 26.29. The
"digit trick" moves the rows of the digits in a matrix on by one: the answer tells which matrix was
used.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from vlmedge.export.exporter import export_checkpoint
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.model import Model

SAMPLES = Path(__file__).parents[2] / "samples"
PICTURE = SAMPLES / "pictures" / "receipt-0.png"
LIMITS = {"shortest_edge": 3136, "longest_edge": 100352}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def reader(tmp_path):
    return shutil.copytree(SAMPLES / "reader", tmp_path / "reader")


def edit(path, *, without=(), **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if key not in without}
    path.write_text(json.dumps(content))


def answer(checkpoint, picture=PICTURE):
    bundle = checkpoint.parent / "bundle"
    export_checkpoint(checkpoint, bundle)
    with Model.load(bundle, num_threads=1) as model:
        return model.answer("What is the total?", [picture]).text


def roll_digits(matrix):
    rolled = matrix.copy()
    rolled[13:23] = np.roll(matrix[13:23], 1, axis=0)
    return rolled


def save_in_two(tensors, folder):
    """Two shards and their index."""
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_settings_of_pictures_under_the_new_name(reader):
    path = reader / "preprocessor_config.json"
    config = json.loads(path.read_text()) | {"min_pixels": None, "max_pixels": None}
    path.unlink()
    edit(reader / "processor_config.json", image_processor=config | {"size": LIMITS})
    picture = Image.open(PICTURE).convert("RGB").resize((900, 770), Image.Resampling.BICUBIC)
    assert answer(reader, picture) == "26.29"


def test_a_merge_saved_beside_its_base_is_refused(reader):
    tensors = load_file(reader / "model.safetensors")
    save_in_two(tensors | {EMBED: roll_digits(tensors[EMBED])}, reader)
    with pytest.raises(ValueError, match=r"model\.safetensors.*differ"):
        export_checkpoint(reader, reader.parent / "bundle")


def test_the_same_weights_twice_are_no_matter(reader):
    save_in_two(load_file(reader / "model.safetensors"), reader)
    assert answer(reader) == "26.29"


def test_a_trained_head_beside_tied_embeddings_is_used(reader):
    path = reader / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {HEAD: roll_digits(tensors[EMBED])}, path, {"format": "pt"})
    assert answer(reader).startswith("37")


def test_a_template_that_names_its_end_token(reader):
    path = reader / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"]
    edit(path, chat_template=template.replace("<|im_end|>\\n' }}", "' + eos_token + '\\n' }}"))
    assert "eos_token" in path.read_text()
    assert answer(reader) == "26.29"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"suppress_tokens": [17]}, "36.49"),
        ({"no_repeat_ngram_size": 1}, "26 cost"),
        ({"min_new_tokens": 10}, "26.2900.26"),
        ({"max_new_tokens": 2}, "26"),
    ],
    ids=["suppress", "ngram", "min", "max"],
)
def test_settings_of_generation(reader, settings, said):
    edit(reader / "generation_config.json", **settings)
    text = answer(reader)
    assert text == said if said == "26" else text.startswith(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rescale_factor": 1 / 127.5}, "1."),
        ({"do_normalize": False}, "7.12"),
        ({"do_rescale": False}, "0."),
    ],
    ids=["rescale_factor", "do_normalize", "do_rescale"],
)
def test_settings_of_pictures_that_spoil_the_answer_spoil_ours_alike(reader, settings, said):
    edit(reader / "preprocessor_config.json", **settings)
    assert answer(reader).startswith(said)


def test_pictures_that_are_not_resized_are_refused(reader):
    edit(reader / "preprocessor_config.json", do_resize=False)
    with pytest.raises(ValueError, match="do_resize is False, which is refused"):
        export_checkpoint(reader, reader.parent / "bundle")


def test_an_index_that_lists_a_tied_head_no_shard_has(reader):
    tensors = load_file(reader / "model.safetensors")
    save_in_two(tensors, reader)
    (reader / "model.safetensors").unlink()
    path = reader / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][HEAD] = index["weight_map"][EMBED]
    path.write_text(json.dumps(index))
    assert answer(reader) == "26.29"


def test_an_index_without_its_shards_beside_a_complete_file(reader):
    save_in_two(load_file(reader / "model.safetensors"), reader)
    for shard in reader.glob("model-*.safetensors"):
        shard.unlink()
    assert answer(reader) == "26.29"


def test_nulls_count_as_absent(reader):
    edit(reader / "config.json", quantization_config=None, hidden_act=None, use_cache=None)
    assert answer(reader) == "26.29"


def test_an_untied_model_takes_the_recipes_that_share_the_table(make_bundle, tmp_path):
    made = quantize_bundle(make_bundle("tiny-7b").bundle, tmp_path / "q", open_recipe("cpu"))
    (table,) = [entry for entry in made.manifest.coverage if entry.kind == "table"]
    assert (table.precision, table.reason) == (
        "int8 rows",
        "fallback: the lm_head is another matrix",
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_names_of_a_wrapped_model_are_told_in_one_line(reader, prefix):
    path = reader / "model.safetensors"
    save_file({f"{prefix}{k}": v for k, v in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=prefix.replace(".", r"\.")) as caught:
        export_checkpoint(reader, reader.parent / "bundle")
    assert len(str(caught.value)) < 500


def test_grounding_tokens_can_be_kept(reader, tmp_path):
    from vlmedge.runtime import GenerationOptions

    export_checkpoint(reader, tmp_path / "bundle")
    options = GenerationOptions(max_new_tokens=8, skip_special_tokens=False, ignore_eos=True)
    plain = GenerationOptions(max_new_tokens=8, ignore_eos=True)
    with Model.load(tmp_path / "bundle", num_threads=1) as model:
        kept = model.answer("What is the total?", [PICTURE], options)
        without = model.answer("What is the total?", [PICTURE], plain)
    assert kept.token_ids == without.token_ids
    assert "<|" in kept.text
    assert "<|" not in without.text


def test_data_as_a_trainer_has_it(tmp_path):
    row = {
        "image": str(PICTURE),
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is the total?"},
            {"from": "gpt", "value": 26.29},
        ],
        "source": "shop",
    }
    (tmp_path / "train.json").write_text(json.dumps([row]))
    data = open_data(str(tmp_path / "train.json"))
    assert data.examples[0].answers == ("26.29",)
    assert "'source' in 1 rows" in data.notices[0]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("https://example.org/a.png", "https://example.org/a.png is on the network"),
        ("file:///nowhere/a%20b.png", "/nowhere/a b.png"),
    ],
)
def test_addresses_of_pictures_are_told_as_they_were_given(make_bundle, capsys, image, said):
    bundle = str(make_bundle("tiny").bundle)
    assert cli.main(["run", bundle, "What?", "--image", image]) == 1
    assert said in capsys.readouterr().err
