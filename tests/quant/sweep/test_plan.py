"""Sweep files: what they name is found, and what is wrong in them is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.quant.recipe.toml import open_recipe, parse_recipe
from vlmedge.quant.sweep.plan import name_path, read_sweep

PLAIN = 'name = "plain"\n[decoder]\nformat = "int8-weight"\n'
CALIBRATED = 'name = "calibrated"\n[vision]\nformat = "int8"\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plain.toml").write_text(PLAIN)
    (tmp_path / "calibrated.toml").write_text(CALIBRATED)
    (tmp_path / "gate.toml").write_text("[tasks]\nloss_max = 1\n")
    (tmp_path / "data.jsonl").touch()
    for name in ("float", "older", "reader"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(folder, text):
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_a_small_file_is_enough(folder):
    sweep = read_sweep(
        write(folder, 'sources = ["float"]\nrecipes = ["plain.toml"]\ndata.source = "data.jsonl"')
    )
    assert sweep.sources == {"float": str(folder / "float")}
    assert sweep.recipes == {"plain": parse_recipe(PLAIN, "plain.toml")}
    assert sweep.bundles == {}
    assert sweep.data.source == str(folder / "data.jsonl")
    assert (sweep.data.num_shards, sweep.calibration, sweep.gate) == (1, None, None)
    assert sweep.check.levels == ("embeddings", "logits", "texts", "tasks")


def test_every_key_is_read(folder):
    text = """
sources = ["float", "reader/", "Owner/Name"]
recipes = ["orin", "calibrated.toml"]
bundles = ["older"]
[data]
source = "docvqa:data.jsonl"
num_shards = 3
limit = 100
seed = 2
task = "receipt"
skip_bad = true
[calibration]
source = "easy-vqa"
limit = 8
[check]
levels = ["texts", "tasks", "speed"]
max_new_tokens = 5
against = "float"
gate = "gate.toml"
"""
    sweep = read_sweep(write(folder, text))
    assert sweep.sources == {
        "float": str(folder / "float"),
        "reader": f"{folder}/reader",
        "Name": "Owner/Name",
    }
    assert sweep.recipes["orin"] == open_recipe("orin")
    assert sweep.bundles == {"older": str(folder / "older")}
    assert sweep.data.source == f"docvqa:{folder / 'data.jsonl'}"
    assert (sweep.data.num_shards, sweep.data.limit, sweep.data.task) == (3, 100, "receipt")
    assert sweep.calibration is not None
    assert sweep.calibration.source == "easy-vqa"
    assert sweep.check.against == str(folder / "float")
    assert sweep.gate is not None
    assert sweep.gate.levels == {"settings", "tasks"}


GOOD = 'sources = ["float"]\nrecipes = ["plain.toml"]\n'
DATA = 'data.source = "data.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources = [", "is not TOML"),
        ("", "lacks: data"),
        (DATA, "no sources and no bundles"),
        ('sources = ["float"]\n' + DATA, "sources and recipes go together"),
        ('recipes = ["orin"]\nbundles = ["older"]\n' + DATA, "sources and recipes go together"),
        (GOOD + DATA + "shards = 2\n", "unknown keys: shards"),
        (GOOD + DATA + "data.shards = 2\n", r"sweep\.toml\.data has unknown keys: shards"),
        (GOOD + DATA + "data.num_shards = 0\n", "num_shards is 0, needed 1 to"),
        (GOOD + DATA + 'data.limit = "2"\n', "data.limit is '2'"),
        (GOOD + DATA + "check.levels = []\n", "there are no levels to compare"),
        (GOOD + DATA + 'check.levels = ["speeed"]\n', "needed one of 'settings'"),
        (GOOD + DATA + "check.max_new_tokens = 0\n", "max_new_tokens is 0"),
        (GOOD + DATA + "check.num_speed_runs = 0\n", "num_speed_runs is 0"),
        (GOOD + DATA + 'check.gate = "none.toml"\n', r"none\.toml: cannot be read"),
        (
            GOOD + DATA + 'check.levels = ["texts"]\ncheck.gate = "gate.toml"\n',
            r"gate\.toml limits tasks, which is not measured",
        ),
        ('sources = ["float"]\nrecipes = ["orinn"]\n' + DATA, "is no recipe"),
        (
            'sources = ["float"]\nrecipes = ["calibrated.toml"]\n' + DATA,
            r"recipe calibrated needs real pictures: add \[calibration\]",
        ),
        (
            'sources = ["float"]\nrecipes = ["plain.toml", "./plain.toml"]\n' + DATA,
            "recipes: two are called plain",
        ),
        ('sources = ["float", "a/float"]\nrecipes = ["plain.toml"]\n' + DATA, "two are called"),
        ('bundles = ["none"]\n' + DATA, "there is no folder none"),
        ('bundles = ["older"]\n' + DATA, "check.against is needed"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(folder, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_sweep(write(folder, text))
    assert "sweep.toml" in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_sweep(tmp_path / "none.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="this is no sweep"):
        read_sweep(tmp_path / "large.toml")


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_any_text_is_a_sweep_or_a_value_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "sweep.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"sweep\.toml"):
        read_sweep(path)


@given(st.text())
def test_a_name_is_one_plain_part_of_a_path(path):
    name = name_path(path)
    assert name
    assert not set(name) & set("/\\ \0:")
    assert name not in (".", "..")
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize(
    ("path", "name"), [("Qwen/Qwen2-VL-2B", "Qwen2-VL-2B"), ("/a/b.bundle/", "b.bundle")]
)
def test_names_are_the_last_part(path, name):
    assert name_path(path) == name
