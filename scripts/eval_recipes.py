"""What recipes cost the sample on held-out pictures, task by task, with intervals.

    python scripts/eval_recipes.py --out bundles/recipes --num-examples 500

Quantizes samples/reader by every recipe of the table below and the presets, all calibrated on the
same drawn pictures, and asks each bundle and the float one the same held-out questions. A row is
printed as soon as it is known and kept in OUT/NAME.json; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from vlmedge.export.exporter import export_checkpoint
from vlmedge.quant.data.examples import DataSet
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.data.task_metrics import score
from vlmedge.quant.files.atomic import write_text
from vlmedge.quant.gate.statistics import paired_interval
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.preset_names import list_presets
from vlmedge.quant.recipe.recipe import LinearRecipe, Recipe
from vlmedge.quant.recipe.toml import open_recipe
from vlmedge.runtime import GenerationOptions, Model

ROOT = Path(__file__).resolve().parent.parent
W8A8 = LinearRecipe("int8", "gptq", ranges="minmax")
FP8 = LinearRecipe("fp8", ranges="minmax", smooth="off")
FORMATS = {
    "int8-naive": LinearRecipe("int8", ranges="minmax", smooth="off", shift="off"),
    "int8": W8A8,
    "int8-dynamic": LinearRecipe("int8-dynamic"),
    "fp8": FP8,
    "int4-nearest": LinearRecipe("int4-weight", block_size=128),
    "int4-awq": LinearRecipe("int4-weight", "awq", block_size=128),
    "int4-gptq": LinearRecipe("int4-weight", "gptq", block_size=128),
    "int4-awq+gptq": LinearRecipe("int4-weight", "awq+gptq", block_size=128),
    # a scale for a whole row of most layers: where rounding to nearest starts to break
    "int4-256-nearest": LinearRecipe("int4-weight", block_size=256),
    "int4-256-awq+gptq": LinearRecipe("int4-weight", "awq+gptq", block_size=256),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bundles" / "recipes")
    parser.add_argument("--num-examples", type=int, default=500, help="held-out, per task")
    parser.add_argument("--num-calibration", type=int, default=16, help="per task")
    parser.add_argument("--recipes", nargs="+", default=[*FORMATS, *list_presets()])
    parser.add_argument("--num-threads", type=int, default=1)
    return parser.parse_args(argv)


def draw(folder: Path, split: str, num_examples: int) -> DataSet:
    """One data set of the sample, drawn unless it is there."""
    if not folder.exists():
        command = [sys.executable, str(ROOT / "scripts" / "draw_sample_data.py"), str(folder)]
        command += ["--split", split, "--num-examples", str(num_examples)]
        subprocess.run(command, check=True)
    return open_data(str(folder / "data.jsonl"))


def make_recipe(name: str) -> Recipe:
    """A row of FORMATS, for ViT and decoder alike, or a preset."""
    if name in FORMATS:
        return Recipe(name.replace("+", "-"), vision=FORMATS[name], decoder=FORMATS[name])
    return open_recipe(name)


def ask_all(bundle: Path, held_out: DataSet, num_threads: int) -> dict[str, list[float]]:
    """Scores of the greedy answers, by task."""
    options = GenerationOptions(max_new_tokens=16, do_sample=False)
    scores: dict[str, list[float]] = {}
    with Model.load(bundle, providers="cpu", num_threads=num_threads) as model:
        for example in held_out.examples:
            found = score(model.chat(example.messages, options).text, example)
            assert found is not None  # every drawn example has its answer
            scores.setdefault(example.task, []).append(found)
    return scores


def measure(
    name: str, out: Path, held_out: DataSet, calibration: DataSet, num_threads: int
) -> dict:
    """Scores, size and mean layer error of one recipe; from its file where that is there."""
    path = out / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    bundle, error = out / name, None
    if name == "float":
        if not bundle.exists():
            export_checkpoint(ROOT / "samples" / "reader", bundle)
    else:
        recipe = make_recipe(name)
        data = calibration if recipe.needs_data else None
        made = quantize_bundle(out / "float", bundle, recipe, data, num_threads=num_threads)
        if made.errors:
            error = float(np.mean([one.chosen for one in made.errors.values()]))
    size = sum(file.stat().st_size for file in bundle.iterdir())
    result = {
        "bytes": size,
        "layer_error": error,
        "scores": ask_all(bundle, held_out, num_threads),
    }
    write_text(path, json.dumps(result) + "\n")
    return result


def main() -> None:
    """The float bundle, then every recipe beside it."""
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = draw(args.out / "held-out", "held-out", args.num_examples)
    calibration = draw(args.out / "calibration", "calibration", args.num_calibration)
    reference = None
    for name in ("float", *args.recipes):
        result = measure(name, args.out, held_out, calibration, args.num_threads)
        reference = reference or result
        tasks = {task: 100 * float(np.mean(found)) for task, found in result["scores"].items()}
        low, high = paired_interval(
            np.concatenate(list(reference["scores"].values())),
            np.concatenate(list(result["scores"].values())),
        )
        cells = " | ".join(f"{value:.1f}" for value in tasks.values())
        mean = np.mean(list(tasks.values()))
        error = "" if result["layer_error"] is None else f"{100 * result['layer_error']:.2f}"
        print(
            f"| {name} | {result['bytes'] / 1e6:.1f} | {error} | {cells} | {mean:.2f} | "
            f"{100 * low:+.2f} to {100 * high:+.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
