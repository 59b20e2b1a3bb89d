"""Names, ids, manifests and answers that hold control characters: a terminal never gets them."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata

import pytest

from vlmedge.runtime.bundle.manifest_seal import seal_manifest
from vlmedge.runtime.terminal.printable import escape_controls, escape_json

# Sets the window's title, red letters, an empty screen, C1's CSI, and a name read backwards
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x1b[2J\x9b5mC1\u202egnp.exe\u2066\r\x08[bold]x[/red]"
NAME = HOSTILE.replace("/", "")  # of a file or folder
SHOWN = "\\x1b]0;owned\\x07\\x1b[31mred\\x1b[2J\\x9b5mC1\\u202egnp.exe\\u2066\\r\\x08[bold]x"


def check_harmless(terminal):
    """No title, no colour, nothing moved, and the text is there for a person to see."""
    assert terminal.screen.title == ""
    lines = [*terminal.screen.history.top, *terminal.screen.buffer.values()]
    assert {cell.fg for line in lines for cell in line.values()} == {"default"}
    assert not any(unicodedata.category(letter) == "Cf" for letter in terminal.raw.decode())
    joined = terminal.text.replace("\n", "").replace(" ", "")
    assert SHOWN[:21] in joined, terminal.text


@pytest.fixture
def hostile_bundle(desk, tmp_path):
    """A bundle with such a name, and a file of such a name beside its own."""
    bundle = shutil.copytree(desk.bundle, tmp_path / NAME)
    (bundle / f"{NAME}.onnx").touch()
    return bundle


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((HOSTILE,), 2),
        (("inspect", HOSTILE), 1),
        (("inspect", "bundle", f"--{HOSTILE}"), 2),
        (("bench", "bundle", "--image-size", HOSTILE), 2),
        (("export", HOSTILE, "bundle"), 1),
        (("quantize", "bundle", "other", "--recipe", HOSTILE), 2),
        (("check", "bundle", "--against", "other", "--data", ".", "--gate", HOSTILE), 2),
        (("diff", HOSTILE, "bundle", "--data", HOSTILE), 2),
        (("sweep", HOSTILE, "--out", "out"), 2),
        (("build", HOSTILE), 1),
        (("plan", HOSTILE, "--device", "orin-nano-8gb"), 2),
    ],
)
def test_an_error_shows_what_it_names_and_obeys_none_of_it(run_in_terminal, tmp_path, args, code):
    check_harmless(run_in_terminal(*args, code=code, cwd=tmp_path, columns=120))


@pytest.mark.parametrize("options", [(), ("--coverage",), ("--json",)])
def test_a_bundles_name_is_shown_and_not_obeyed(run_in_terminal, hostile_bundle, options):
    terminal = run_in_terminal("inspect", hostile_bundle, *options)
    if options == ("--json",):
        assert terminal.screen.title == ""
        assert not any(unicodedata.category(letter) == "Cf" for letter in terminal.raw.decode())
        return
    check_harmless(terminal)


def test_json_holds_the_same_values_in_a_pipe(run_in_terminal, hostile_bundle):
    terminal = run_in_terminal("inspect", hostile_bundle, "--json", piped=True)
    assert f"{NAME}.onnx" in json.loads(terminal.out)["unlisted_files"]


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (("source",), "name"),
        (("quantization",), "data"),
        (("quantization",), "recipe"),
        (("coverage", 0), "reason"),
    ],
)
def test_a_manifest_of_such_text_is_refused_and_not_obeyed(
    run_in_terminal, desk, tmp_path, place, key
):
    bundle = shutil.copytree(desk.bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    holder = manifest
    for step in place:
        holder = holder[step]
    holder[key] = HOSTILE
    (bundle / "manifest.json").write_text(seal_manifest(manifest), encoding="utf-8")
    terminal = run_in_terminal("inspect", bundle, code=1, columns=120)
    check_harmless(terminal)
    assert key in terminal.text


@pytest.fixture
def hostile_data(desk, tmp_path):
    """Two examples with such ids, and a gate file with such a name."""
    rows = [json.loads(line) for line in desk.data.read_text(encoding="utf-8").splitlines()]
    folder = shutil.copytree(desk.folder / "data", tmp_path / "data")
    lines = [row | {"id": f"{HOSTILE} {row['id']}", "task": HOSTILE} for row in rows]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    gate = shutil.copy(desk.loose, tmp_path / f"{NAME}.toml")
    return data, gate


def test_ids_tasks_and_gates_are_shown_and_not_obeyed(
    run_in_terminal, desk, hostile_bundle, hostile_data
):
    data, gate = hostile_data
    args = ("--against", desk.float, "--data", data, "--gate", gate)
    levels = ("--levels", "embeddings,tasks", "--max-new-tokens", 1)
    terminal = run_in_terminal("check", hostile_bundle, *args, *levels)
    check_harmless(terminal)
    assert terminal.saw("\\x1b]0;owned")


def test_a_recipe_is_shown_and_not_obeyed(run_in_terminal, desk, tmp_path):
    recipe = tmp_path / "recipe.toml"
    text = f'name = {json.dumps(HOSTILE)}\n[vision]\nformat = "int8-weight"\n'
    recipe.write_text(text, encoding="utf-8")
    args = ("quantize", desk.float, tmp_path / "out", "--recipe", recipe)
    check_harmless(run_in_terminal(*args, code=1))  # no name of a recipe


# A bundle of random weights writes bytes of any kind when it samples
SAMPLED = ("What?", "--max-new-tokens", 60, "--temperature", 5, "--seed", 1)


def test_an_answer_is_escaped_on_a_terminal_and_the_very_same_in_a_pipe(run_in_terminal, desk):
    piped = run_in_terminal("run", desk.bundle, *SAMPLED, piped=True).out.decode()
    controls = [letter for letter in piped.rstrip("\n") if escape_controls(letter) != letter]
    assert set(controls) - {"\n", "\t"}, "choose a seed whose answer holds control characters"
    terminal = run_in_terminal("run", desk.bundle, *SAMPLED, columns=1000)
    for letter in set(controls) - {"\n", "\t"}:
        assert letter.encode() not in terminal.raw.replace(b"\x1b[", b"").replace(b"\r", b"")
        assert escape_controls(letter) in terminal.text


def test_an_undecodable_name_is_no_error_of_its_own(desk, tmp_path):
    """A name of bytes that are no UTF-8, on a stdout that could not even write é."""
    bundle = shutil.copytree(desk.bundle, tmp_path / os.fsdecode(b"b\xff\xc3\xa9"))
    done = subprocess.run(
        [sys.executable, "-m", "vlmedge.runtime", "inspect", bundle],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Bundle b\\udcff\\xe9" in done.stdout


def test_every_control_character_of_unicode_is_escaped_and_nothing_else():
    plain = "".join(map(chr, range(0x20, 0x7F))) + "é漢字🙂\u00a0\u200d"
    assert escape_controls(plain) == plain
    for number in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2069, 0xDC80]:
        shown = escape_controls(chr(number))
        assert shown.isascii()
        assert shown.isprintable()
        assert shown.startswith("\\")


def test_escaped_json_is_the_same_value():
    value = {HOSTILE: ["\u2028\x7f\x85", "\n\t", "\\u202e"]}
    text = escape_json(json.dumps(value, indent=1, ensure_ascii=False))
    assert json.loads(text) == value
    assert escape_controls(text, keep="\n") == text
