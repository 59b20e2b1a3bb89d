import pytest

from vlmedge.runtime import BundleError, ImageError
from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.inputs.images import open_image
from vlmedge.runtime.shorten import (
    MAX_MESSAGE_CHARS,
    MAX_WORD_CHARS,
    shorten,
    shorten_message,
)


def test_a_long_text_keeps_its_ends():
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcde…hijk"
    assert shorten("abcdefghijk", 1) == "…"
    assert shorten("", 5) == ""


@pytest.mark.parametrize("length", [MAX_WORD_CHARS, MAX_WORD_CHARS + 1, 5000])
def test_a_long_word_in_a_message_is_cut_and_the_rest_stays(length):
    text = shorten_message(f"picture {'x' * length} is missing")
    assert text.startswith("picture x")
    assert text.endswith("x is missing")
    assert len(text) == len("picture  is missing") + min(length, MAX_WORD_CHARS)


def test_a_message_of_many_words_is_cut_in_its_middle():
    text = shorten_message(f"first {'word ' * 5000}last")
    assert len(text) == MAX_MESSAGE_CHARS
    assert text.startswith("first word")
    assert text.endswith("word last")


def test_our_errors_are_short_for_callers_of_the_library_too():
    error = BundleError(f"{'k' * 100000} is unknown")
    assert len(str(error)) < 300
    assert str(BundleError()) == ""
    assert BundleError("a", 1).args == ("a", 1)
    with pytest.raises(ImageError) as caught:
        open_image("n" * 100000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "args",
    [
        ["run", "b" * 100000, "hi"],
        ["inspect", "/".join(["d" * 100] * 500)],
        ["inspect", "b", f"--{'o' * 100000}"],
        ["c" * 100000],
        ["plan", "b", "--device", "d" * 100000],
        ["quantize", "b", "o", "--recipe", "r" * 100000],
        ["check", "b", "--against", "b", "--data", "d" * 100000],
        ["bench", "b", "--image-size", "9" * 100000],
        ["bench", "b", "--runs", "9" * 100000],
    ],
    ids=lambda args: args[0][:8],
)
def test_no_argument_makes_an_error_that_fills_the_screen(args, capsys):
    assert cli.main(args) in (1, 2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < MAX_MESSAGE_CHARS + 200


def test_a_word_of_a_file_does_not_fill_the_screen(tmp_path, capsys, make_bundle):
    bundle = str(make_bundle("tiny").bundle)
    out = str(tmp_path / "out")
    recipe, gate, data = (tmp_path / name for name in ("r.toml", "g.toml", "d.jsonl"))
    key = "k" * 100000
    recipe.write_text(f'{key} = "v"')
    gate.write_text(f"[{key}]\na = 1")
    data.write_text(f'{{"question": "?", "metric": "{key}"}}\n')
    pictures = ["--data", str(data)]
    for args in (
        ["quantize", bundle, out, "--recipe", str(recipe)],
        ["quantize", bundle, out, "--recipe", "orin", *pictures],
        ["check", bundle, "--against", bundle, *pictures, "--gate", str(gate)],
        ["check", bundle, "--against", bundle, *pictures],
    ):
        assert cli.main(args) in (1, 2)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "kkk…kkk" in err or "has 100000 characters" in err, err[:300]
        assert len(err) < MAX_MESSAGE_CHARS + 200
