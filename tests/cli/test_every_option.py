"""All options of all commands, one by one: help, defaults, wrong values, completion."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from vlmedge.runtime.cli import main as cli

HEAVY = (
    *("onnx", "onnx_ir", "onnxruntime", "torch", "transformers", "tensorrt", "tensorrt_rtx"),
    *("ml_dtypes", "rapidfuzz", "jiwer", "pyarrow", "ray", "safetensors", "huggingface_hub"),
)
COMMANDS = {
    name: cli.load_command(entry)
    for name, entry in cli.find_commands().items()
    if entry.module.startswith("vlmedge.")
}
PARAMS = [(name, param) for name, command in COMMANDS.items() for param in command.params]
OPTIONS = [(name, param) for name, param in PARAMS if param.param_type_name == "option"]
IDS = [f"{name} {max(param.opts, key=len)}" for name, param in OPTIONS]
# What each command needs besides the option that is tried; nothing of it exists
BESIDES = {
    "run": ["no.bundle", "What?"],
    "inspect": ["no.bundle"],
    "bench": ["no.bundle"],
    "build": ["no.bundle"],
    "export": ["no/checkpoint", "out.bundle"],
    "plan": ["no/checkpoint"],
    "quantize": ["no.bundle", "out.bundle", "--recipe", "cpu"],
    "check": ["no.bundle", "--against", "no.bundle", "--data", "easy-vqa"],
    "diff": ["no.bundle", "no.bundle", "--data", "easy-vqa"],
    "sensitivity": ["no.bundle", "--recipe", "cpu", "--data", "easy-vqa"],
    "sweep": ["{sweep}", "--out", "out"],
}
# Options of free text or of paths that a command makes, of which no value is wrong by itself
ANY_VALUE = {
    *("run --image", "run --frames", "run --system", "run --allow-token"),
    "build --timing-cache",
    *("check --against", "check --report", "check --task", "quantize --calibration"),
    *("quantize --write-recipe", "sensitivity --out", "sweep --out", "sweep --ray"),
    "build --emit-script",
}
WRONG = {
    "--provider": "cdua",
    "--target": "jetpack-5",
    "--recipe": "orim",
    "--data": "no-such-data",
    "--image": "640x",
    "--image-size": "640x",
    "--video": "soon",
    "--device": "nano",
    "--levels": "embedings",
    "--gate": "no-gate.toml",
    "--plot": "plot.png",
    "--stop": "",
    "--free-memory": "9999",
    "--compute-capability": "eight",
    "--accept-warning": " ",
}


def find_wrong_value(param):
    """What the option's own type refuses, or what its meaning does."""
    option = max(param.opts, key=len)
    return WRONG.get(option, "never-a-number-nor-a-choice")


def is_flag(param):
    return bool(getattr(param, "is_flag", False))


@pytest.fixture(scope="module")
def find_error():
    """find_error([args, ...]) -> code and stderr of each, in one process without heavy packages."""

    def run(cases, folder):
        script = (
            "import contextlib, io, json, sys\n"
            "class Blocker:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.partition('.')[0] in {HEAVY!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Blocker())\n"
            "from vlmedge.runtime.cli.main import main\n"
            "found = []\n"
            "for args in json.load(sys.stdin):\n"
            "    err = io.StringIO()\n"
            "    with contextlib.redirect_stderr(err):\n"
            "        code = main(args)\n"
            "    found.append([code, err.getvalue()])\n"
            "print(json.dumps(found))\n"
        )
        clean = {name: value for name, value in os.environ.items() if name != "VLMEDGE_DEBUG"}
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            env=clean,
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_help_keeps_its_lines_at_80_columns(name):
    """A longer one would leave a word or two of itself on a line of their own."""
    lines = inspect.cleandoc(COMMANDS[name].callback.__doc__ or "").splitlines()
    assert [line for line in lines[1:] if len(line) > 78] == []


def test_a_wrong_value_of_any_option_is_told_before_heavy_packages_are_loaded(find_error, tmp_path):
    (tmp_path / "sweep.toml").write_text("")
    tried, cases = [], []
    for label, (name, param) in zip(IDS, OPTIONS, strict=True):
        if is_flag(param) or label in ANY_VALUE:
            continue
        option, value = max(param.opts, key=len), find_wrong_value(param)
        besides = [word.format(sweep="sweep.toml") for word in BESIDES[name]]
        if option in besides:
            at = besides.index(option)
            besides = besides[:at] + besides[at + 2 :]
        if option == "--gate" and name == "quantize":
            besides += ["--auto", "--data", "easy-vqa"]
        if option == "--media-root" and name == "quantize":
            besides += ["--data", "easy-vqa"]
        tried.append((label, value))
        cases.append([name, *besides, option, value])
    for (label, value), (code, err) in zip(tried, find_error(cases, tmp_path), strict=True):
        assert code == 2, (label, err)
        assert err.count("\n") == 1, (label, err)
        assert f"see vlmedge {label.split()[0]} --help" in err, (label, err)
        assert " needs " not in err, (label, err)
        assert value.strip() in err, (label, err)
    assert len(tried) > 60


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "b", "p", "--min-pixels", "9", "--max-pixels", "3"], "is above --max-pixels 3"),
        (["run", "b", "p", "--provider", "tensorrt", "--provider", "cpu"], "goes alone"),
        (["export", "c", "b", "--dtype", "fp16"], "--dtype goes with --target"),
        (["export", "c", "b", "--block-size", "17"], "needed one of 16, 32, 64, 128, 256"),
        (["export", "c", "b", "--target", "jetpack-7.2", "--verify"], "leave out --target"),
        (["export", "c", "b", "--target", "jetpack-7.2", "--weights", "int8"], "quantize first"),
        (["quantize", "s", "b", "--recipe", "cpu", "--auto"], "--auto and --gate go together"),
        (["quantize", "s", "b", "--recipe", "orim"], "did you mean orin?"),
        (["check", "b", "--against", "a", "--data", "d.jsonl"], "No such file"),
        (["check", "b", "--against", "a", "--data", "easy-vqa", "--levels", ""], "no levels"),
        (["build", "b", "--emit-script", "o.sh", "--builder", "tensorrt"], "leave out --builder"),
        (["sweep", "no.toml", "--out", "o"], "no.toml, which cannot be read"),
        (["plan", "m", "--headless", "--free-memory", "4"], "give one of them"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_told_before_heavy_packages_are_loaded(
    find_error, tmp_path, args, said
):
    ((code, err),) = find_error([args], tmp_path)
    assert code == 2, err
    assert said in err
    assert err.count("\n") == 1


def test_no_text_of_the_parser_or_its_validator_is_shown(find_error, tmp_path):
    cases = [
        ["run", "b", "p", "--max-new-tokens", "0"],
        ["run", "b", "p", "--temperature", "warm"],
        ["run", "b", "p", "--top-p", "3"],
        ["run", "b", "p", "--seed", "1.5"],
        ["run", "b", "p", "--mrope-rule", "mine"],
        ["run", "b", "p", "--json=yes"],
        ["run", "b", "p", "extra"],
        ["run", "b", "p", "--image"],
        ["run", "b"],
        ["check", "b"],
        ["bench", "b", "--context", "many"],
        ["plan", "m", "--dtype", "fp8"],
        ["plan", "m", "--devise", "thor"],
        ["rum"],
    ]
    needed = [
        "--max-new-tokens is 0, needed 1 or more",
        "--temperature is 'warm', needed a number",
        "--top-p is 3, needed 0 to 1",
        "--seed is '1.5', needed a whole number",
        "--mrope-rule is 'mine', needed one of paper, transformers>=5.3",
        "--json takes no value",
        "extra is more than the command takes",
        "--image needs a value",
        "PROMPT is missing",
        "--against is missing",
        "--context is 'many', needed a whole number",
        "--dtype is 'fp8', needed one of bf16, fp16, fp32",
        "there is no option --devise; did you mean --device?",
        "there is no command 'rum'; did you mean 'run'?",
    ]
    for text, args, (code, err) in zip(needed, cases, find_error(cases, tmp_path), strict=True):
        assert code == 2, args
        assert f": {text} (see vlmedge" in err
        assert not re.search(r"value error|invalid value|input should|pydantic", err, re.IGNORECASE)


def test_commands_that_need_python_311_say_so_and_exit_2(run_cli):
    for args in (
        ["quantize", "s", "b", "--recipe", "cpu"],
        ["check", "b", "--against", "b", "--data", "easy-vqa"],
        ["sensitivity", "b", "--recipe", "cpu", "--data", "easy-vqa"],
        ["sweep", __file__, "--out", "out"],
    ):
        done = run_cli(*args, blocked=("tomllib", *HEAVY))
        version = sys.version.split()[0]
        needed = f"vlmedge {args[0]} needs Python 3.11 or newer; this is {version}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", needed)


@pytest.mark.parametrize(("name", "param"), OPTIONS, ids=IDS)
def test_an_option_has_a_sentence_and_shows_what_holds_without_it(name, param):
    text = param.help or ""
    assert re.match(r"[A-Z]", text), text
    assert text.endswith("."), text
    assert not re.search(r"\b(below|above)\.$|see (below|above)|default:", text), text
    if param.required or (is_flag(param) and not param.secondary_opts):
        return
    has_words = isinstance(param.show_default, str) and param.show_default
    assert has_words or param.default is not None, "its help has no default"


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_look_alike_in_every_help(name, run_cli):
    done = run_cli(name, "--help", env={"COLUMNS": "250"})
    assert done.returncode == 0, done.stderr
    assert "[default: (" not in done.stdout
    shown = done.stdout.count("[default: ")
    needed = [
        param
        for one, param in OPTIONS
        if one == name and not param.required and not (is_flag(param) and not param.secondary_opts)
    ]
    assert shown == len(needed)
    assert "None" not in done.stdout


def test_an_option_of_several_commands_has_one_text():
    # The same word for another thing: a cache's tokens, an engine's, a picture's or a clip's
    other = {"--context", "--seed", "--threads", "--recipe", "--data", "--device", "--target"}
    other |= {"--max-pixels", "--image", "--video", "--dtype", "--gate", "--out"}
    other |= {"--split", "--separate-lm-head", "--task", "--new-tokens", "--force"}
    texts = {}
    for _, param in OPTIONS:
        texts.setdefault(max(param.opts, key=len), set()).add(param.help)
    for option, found in texts.items():
        assert len(found) == 1 or option in other, (option, found)
    seeds = {param.help for name, param in OPTIONS if "--seed" in param.opts and name != "run"}
    assert seeds == {"Seed for choosing them."}


def complete(shell, line):
    """What a shell is told for a line that ends where its cursor is."""
    words = line.split(" ")
    env = os.environ | {"_VLMEDGE_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        env |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    heavy = ("numpy", "PIL", "tokenizers", *HEAVY)
    script = (
        "import atexit, os, sys\n"
        "def look():\n"
        f"    loaded = set(sys.modules) & set({heavy!r})\n"
        "    if loaded:\n"
        "        print('LOADED', loaded, flush=True); os._exit(9)\n"
        "atexit.register(look)\n"
        "from vlmedge.runtime.cli.main import main\n"
        "sys.exit(main([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert "LOADED" not in done.stdout, done.stdout
    assert done.returncode in (0, 1), done.stderr
    return set(re.findall(r"[\w.,:-]+", done.stdout))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vlmedge ru", {"run"}),
        ("vlmedge quantize a b --recipe o", {"orin"}),
        ("vlmedge sensitivity a --recipe s", {"smallest"}),
        ("vlmedge plan m --recipe ", {"accurate", "cpu", "orin", "smallest", "thor", "float"}),
        ("vlmedge plan m --device orin-nx", {"orin-nx-16gb", "orin-nx-16gb-super"}),
        ("vlmedge plan m --target jetpack-7", {"jetpack-7.0", "jetpack-7.2"}),
        ("vlmedge run a b --provider c", {"cpu", "cuda"}),
        ("vlmedge check a --levels embeddings,lo", {"embeddings,logits"}),
    ],
)
def test_a_shell_completes_commands_and_values_from_our_tables(line, offered):
    found = complete("bash", line)
    assert offered <= found
    if line.endswith("--recipe o"):
        assert "thor" not in found


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_the_same(shell):
    assert {"orin-nx-16gb", "orin-nx-16gb-super"} <= complete(
        shell, "vlmedge plan m --device orin-nx"
    )


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vlmedge export a b --target tensorrt-", {"tensorrt-11", "tensorrt-rtx"}),
        ("vlmedge export a b --weights i", {"int8", "int4"}),
        ("vlmedge build a --buil", {"--builder"}),
    ],
)
def test_commands_that_load_numpy_complete_too(line, offered):
    env = os.environ | {"_VLMEDGE_COMPLETE": "complete_bash", "COMP_WORDS": line}
    env |= {"COMP_CWORD": str(len(line.split(" ")) - 1)}
    script = "import sys; from vlmedge.runtime.cli.main import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert offered <= set(done.stdout.split())
