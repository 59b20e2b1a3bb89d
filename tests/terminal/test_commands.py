"""Every command to its end in a terminal: what a person sees on the way and at the end.

`run_in_terminal` also asserts that there is no traceback and no error of Python's, that the bar is
gone and the cursor back. Tables are drawn by one function, so only the widest ones are looked at
in both widths.
"""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmedge.runtime.cli.main import find_commands

PROGRAM = Path(sys.executable).with_name("vlmedge")

# A bar is drawn ten times a second; here at every step, so that what is seen of it is no chance
EVERY_STEP = """
import sys
from rich.progress import Progress

def update(self, *args, update=Progress.update, **kwargs):
    update(self, *args, **kwargs)
    self.refresh()

Progress.update = update
from vlmedge.runtime.cli.start import main
sys.argv[0] = "vlmedge"
sys.exit(main())
"""


@pytest.fixture(params=[80, 120])
def columns(request):
    return request.param


@pytest.fixture
def see(run_in_terminal):
    """see(*args, code=0, columns=80): the terminal, of which no line was too long."""

    def run(*args, **options):
        program = [sys.executable, "-c", EVERY_STEP]
        terminal = run_in_terminal(*args, **{"program": program} | options)
        assert terminal.too_long == []
        return terminal

    return run


def assert_shows_names(terminal, names):
    """Each name is whole, but for line breaks at its joints: no letter is lost, no word broken."""
    for name in names:
        assert name in terminal.text or _find_broken(terminal.lines, name), (name, terminal.text)


def _find_broken(lines, name):
    """Whether a name stands in several lines, each part ending at a joint and in one column."""
    for number, line in enumerate(lines):
        for end in range(len(name) - 1, 0, -1):
            if name[end - 1] in "./+-_" and (start := line.find(name[:end])) >= 0:
                after = line[start + end :]
                if after and not after.startswith(" "):
                    continue
                rest = lines[number + 1][start:] if number + 1 < len(lines) else ""
                if _continues(lines, number + 1, start, name[end:], rest):
                    return True
    return False


def _continues(lines, number, start, left, text):
    if re.match(re.escape(left) + r"(?:[ ,]|$)", text):
        return True
    for end in range(len(left) - 1, 0, -1):
        if left[end - 1] in "./+-_" and re.match(re.escape(left[:end]) + r"(?:[ ,]|$)", text):
            following = lines[number + 1][start:] if number + 1 < len(lines) else ""
            if _continues(lines, number + 1, start, left[end:], following):
                return True
    return False


LAYERS = [
    "visual.blocks.0.attn.qkv",
    "model.layers.0.self_attn.q_proj+k_proj+v_proj",
    "model.layers.1.mlp.down_proj",
]


@pytest.mark.parametrize("command", ["", *find_commands()])
def test_help_fits_and_names_the_command(see, command):
    terminal = see(*filter(None, [command, "--help"]), program=(PROGRAM,))
    assert not terminal.saw("starting")
    assert f"Usage: vlmedge {command}".rstrip() in terminal.text


def test_run_shows_that_it_loads_and_then_the_answer_alone(see, desk):
    args = ("run", desk.bundle, "What?", "--image", desk.picture, "--max-new-tokens", 3)
    terminal = see(*args)
    assert terminal.saw("vlmedge run: starting")
    assert terminal.saw("loading ━")
    answer = see(*args, piped=True).out.decode()
    assert terminal.lines[0] == answer.splitlines()[0].rstrip()
    assert terminal.lines[-1] == "vlmedge run: cut off at the maximum number of new tokens"


def test_inspect_shows_hashing_in_bytes_and_the_state_of_every_file(see, desk):
    terminal = see("inspect", desk.bundle)
    assert re.search(r"hashing ━+ [\d.]+/[\d.]+ KiB", "\n".join(terminal.frames))
    assert f"Bundle {desk.bundle.name}" in terminal.text
    for file in ("decoder.onnx.data", "tokenizer.json", "vision_video.onnx"):
        assert re.search(rf"^ *{file} .* ok$", terminal.text, re.MULTILINE)


def test_inspect_coverage_names_every_layer(see, desk, columns):
    terminal = see("inspect", desk.bundle, "--coverage", columns=columns)
    names = [
        "visual.blocks.{0..1}.attn.qkv",
        "model.layers.{0..1}.self_attn.q_proj+k_proj+v_proj",
        "model.embed_tokens",
    ]
    assert_shows_names(terminal, names)
    assert "int4 block 32" in terminal.text


def test_bench_counts_its_steps(see, desk):
    sizes = ("--image-size", "56x56", "--context", 8, "--new-tokens", 2, "--runs", 1)
    terminal = see("bench", desk.bundle, *sizes)
    assert re.search(r"picture 56x56 ━+ \d/6", "\n".join(terminal.frames).replace("╺", "━"))
    assert "peak memory, MiB" in terminal.text


def test_export_counts_bytes_and_says_when_it_checks(see, desk, tmp_path):
    terminal = see("export", desk.checkpoint, tmp_path / "bundle", "--selfcheck")
    frames = "\n".join(terminal.frames)
    assert re.search(r"\S+ [━╺╸]+ [\d.]+/446.2 KiB", frames)
    assert "checking the graphs" in frames
    assert "selfcheck passed" in terminal.text
    assert re.search(r"^ *vision.onnx.data +461,952$", terminal.text, re.MULTILINE)


def test_quantize_counts_stages_and_names_the_worst_layers(see, desk, tmp_path):
    args = ("quantize", desk.checkpoint, tmp_path / "out", "--recipe", desk.recipe)
    terminal = see(*args, "--data", desk.data)
    frames = "\n".join(terminal.frames)
    assert re.search(r"exporting \S+ [━╺╸]+ [\d.]+/[\d.]+ KiB", frames)
    assert re.search(r"visual.blocks.1 [━╺╸]+ 2/8", frames)
    assert terminal.saw("writing the bundle")
    assert "recipe receipts-int8-int4" in terminal.lines
    assert_shows_names(terminal, ["model.layers.1.mlp.down_proj"])


def test_quantize_auto_shows_what_it_tries(see, desk, tmp_path):
    args = ("quantize", desk.float, tmp_path / "out", "--recipe", desk.recipe)
    terminal = see(*args, "--data", desk.data, "--auto", "--gate", desk.loose)
    assert terminal.saw("auto: quantizing every layer ━")
    assert "auto: check 1, 0 given back: the gate holds" in terminal.lines


CHECK = ("--speed-runs", 1, "--max-new-tokens", 2, "--threads", 1)


def test_check_that_fails_shows_limit_and_verdict_side_by_side(see, desk, tmp_path, columns):
    args = ("check", desk.bundle, "--against", desk.float, "--data", desk.data, *CHECK)
    report = ("--gate", desk.strict, "--report", tmp_path / "report")
    terminal = see(*args, *report, code=1, columns=columns)
    frames = "\n".join(terminal.frames)
    assert re.search(r"fp32: receipts/0001 [━╺╸]+ 1/11", frames)
    assert "vlmedge check: writing the report" in frames
    assert re.search(r"^ *image_embeds.cosine_min .* ok\b", terminal.text, re.MULTILINE)
    assert re.search(r"^ *layers.own_sqnr_db_min .* FAILED\b", terminal.text, re.MULTILINE)
    assert terminal.lines[-1] == "FAILED: 1 of 3 limits fails"
    assert_shows_names(terminal, ["model.layers.1.mlp.down_proj", desk.bundle.name])


def test_check_that_passes_says_so_in_its_last_line(see, desk):
    args = ("check", desk.bundle, "--against", desk.float, "--data", desk.data, *CHECK)
    terminal = see(*args, "--gate", desk.loose, "--levels", "embeddings,logits")
    assert terminal.lines[-1] == "PASSED"


def test_diff_names_the_layer_that_departs_and_shows_its_mark(see, desk, columns):
    terminal = see("diff", desk.float, desk.bundle, "--data", desk.data, code=1, columns=columns)
    assert terminal.saw("fp32: visual.blocks.1 ━")
    assert_shows_names(terminal, LAYERS)
    (marked,) = [line for line in terminal.lines if line.endswith("departs")]
    assert marked.lstrip().startswith("model.layers.")
    assert "first to depart by more than 0.1: model.layers." in terminal.text


def test_sensitivity_names_every_layer_and_its_damage(see, desk, columns):
    args = ("sensitivity", desk.float, "--recipe", desk.recipe, "--data", desk.data)
    terminal = see(*args, columns=columns)
    assert re.search(r"decoder: model.layers.1 [━╺╸]+ \d/10", "\n".join(terminal.frames))
    assert_shows_names(terminal, LAYERS)
    for head in ("SQNR", "embeds", "logits", "KL", "without"):
        assert head in terminal.text


def test_sweep_shows_names_scores_and_gate_in_one_part(see, desk, tmp_path, columns):
    terminal = see("sweep", desk.sweep, "--out", tmp_path / "out", columns=columns)
    assert re.search(r"check/fp32/recipe/0-of-1 [━╺╸]+ 1/3", "\n".join(terminal.frames))
    assert_shows_names(terminal, [desk.bundle.name])
    first = terminal.text.split("\n\n")[1].splitlines()
    heads = " ".join(first[: next(i for i, line in enumerate(first) if "─" in line)]).split()
    assert {"bundle", "size", "score", "gate"} <= set(heads)
    assert re.match(r" *recipe .* pass\b", next(line for line in first if "recipe" in line))
    for head in ("difference", "KL", "same", "check"):
        assert re.search(rf"\b{head}\b", terminal.text)


def test_plan_ends_with_its_verdict(see, desk):
    args = ("plan", desk.checkpoint, "--device", "orin-nano-8gb", "--image", "640x480")
    terminal = see(*args, "--explain")
    assert "fits" in terminal.lines
    assert re.search(r"^ *free on the device +[\d,.]+", terminal.text, re.MULTILINE)


def test_a_terminal_that_does_not_tell_its_width_is_taken_for_one_of_80(see, desk):
    args = ("plan", desk.checkpoint, "--device", "orin-nano-8gb", "--image", "640x480")
    assert see(*args, is_told=False).lines == see(*args).lines


def test_plan_that_does_not_fit_says_why(see, desk):
    args = ("plan", desk.checkpoint, "--device", "orin-nano-8gb", "--image", "640x480")
    terminal = see(*args, "--context", 32768, "--batch", 4096, code=1)
    assert "does not fit: " in terminal.text


@pytest.fixture(scope="module")
def lowered(desk, tmp_path_factory) -> SimpleNamespace:
    """A bundle for each TensorRT."""
    from vlmedge.export.lowering.exporter import export_for_target
    from vlmedge.export.lowering.options import LoweringOptions

    folder = tmp_path_factory.mktemp("lowered")
    for target in ("tensorrt-rtx", "jetpack-6.2"):
        export_for_target(desk.checkpoint, folder / target, LoweringOptions(target, "fp16"))
    return SimpleNamespace(rtx=folder / "tensorrt-rtx", jetpack=folder / "jetpack-6.2")


def test_export_for_a_target_counts_bytes(see, desk, tmp_path):
    terminal = see("export", desk.checkpoint, tmp_path / "out", "--target", "tensorrt-rtx")
    assert re.search(r"\S+ [━╺╸]+ [\d.]+/[\d.]+ KiB", "\n".join(terminal.frames))
    assert "target tensorrt-rtx" in terminal.text.replace("\n", " ")


def test_build_shows_the_engine_and_its_phase(see, lowered, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
    bundle = shutil.copytree(lowered.rtx, tmp_path / "rtx")
    options = ("--builder", "tensorrt_rtx", "--compute-capability", "8.6", "--max-pixels", 12544)
    terminal = see("build", bundle, *options)
    assert re.search(r"vision: .+ [━╺╸]+ \d/2", "\n".join(terminal.frames))
    assert re.search(r"^ *decoder.engine +[\d,]+ .* MiB$", terminal.text, re.MULTILINE)


def test_build_emits_a_script_and_says_what_to_do_with_it(see, lowered, tmp_path):
    terminal = see("build", lowered.jetpack, "--emit-script", tmp_path / "build.sh")
    assert terminal.saw("vlmedge build: packing what the device needs")
    assert terminal.lines[-1] == "  tar -xf build.tar && bash build.sh"
