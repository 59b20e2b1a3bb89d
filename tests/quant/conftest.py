"""Questions with pictures, bundles quantized with them, and a made-up check of a 2B-size bundle."""

import json
from pathlib import Path
from types import SimpleNamespace

import draw_sample_data
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.quant.compare.findings import (
    CheckResult,
    EmbeddingFinding,
    LayerFinding,
    LogitFinding,
    SettingFinding,
    SpeedFinding,
    TextFinding,
)
from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.gate.statistics import score_task
from vlmedge.quant.quantize.quantize import quantize_bundle
from vlmedge.quant.recipe.toml import open_recipe, parse_recipe
from vlmedge.runtime.backends.ort.exact_products import make_entries
from vlmedge.runtime.bundle.manifest_file import read_manifest

SAMPLES = Path(__file__).parents[2] / "samples"
TASKS = {"number": 0.99, "price": 0.98, "receipt": 0.93, "bars": 0.97, "dial": 0.9, "clip": 0.85}
BUCKETS = ("252x252", "448x448", "1092x1092")
GUILTY = ("visual.blocks.3.mlp.fc2", "visual.blocks.5.mlp.fc2")


def list_layers(num_blocks, num_layers):
    vision = [
        f"visual.blocks.{i}.{name}"
        for i in range(num_blocks)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    decoder = [
        f"model.layers.{i}.{name}"
        for i in range(num_layers)
        for name in (
            "self_attn.q_proj+k_proj+v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj+up_proj",
            "mlp.down_proj",
        )
    ]
    return [*vision, "visual.merger.mlp.0", "visual.merger.mlp.2"], [*decoder, "lm_head"]


def make_layer_findings(generator, num_blocks, num_layers, broken):
    vision, decoder = list_layers(num_blocks, num_layers)
    found = []
    for bucket_index, bucket in enumerate(BUCKETS):
        error = 1e-5
        for name in vision:
            own = 37 - 2 * ("fc2" in name) - bucket_index + generator.normal(0, 0.8)
            if broken and name in GUILTY:
                own = 7.1 + 4 * GUILTY.index(name) + generator.normal(0, 0.3)
            error += 0.1 * 10 ** (-own / 10)
            found.append(
                LayerFinding(name, "int8 static", bucket, own, -10 * float(np.log10(error)))
            )
        for name in decoder:
            own = 21 - 1.5 * ("down_proj" in name) + generator.normal(0, 0.5)
            error += 0.02 * 10 ** (-own / 10)
            found.append(
                LayerFinding(name, "int4 block 128", bucket, own, -10 * float(np.log10(error)))
            )
    return tuple(found)


def make_texts(generator, per_task, broken):
    texts = []
    for task, score in TASKS.items():
        lost = 0.12 if broken else 0.02
        for i in range(per_task):
            answer = str(generator.integers(100, 99999))
            right = generator.random() < score
            reference = f"{int(answer) / 100:.2f}" if right else f"{int(answer) / 90:.2f}"
            got = reference
            if generator.random() < lost:
                got = reference[:-1] + str((int(reference[-1]) + 3) % 10)
            accepted = f"{int(answer) / 100:.2f}"
            prefix = next(
                (k for k, (a, b) in enumerate(zip(reference, got, strict=True)) if a != b),
                len(reference),
            )
            texts.append(
                TextFinding(
                    f"{task}/{i:04d}",
                    task,
                    f"What is the total of this {task}? Answer with a number.",
                    (accepted,),
                    reference,
                    got,
                    prefix,
                    len(reference),
                    int(got != reference),
                    float(reference == accepted),
                    float(got == accepted),
                )
            )
    return tuple(texts)


def make_logits(generator, texts, broken):
    found = []
    for text in texts:
        size = int(generator.integers(3, 24))
        kl = generator.lognormal(-7 if not broken else -4.5, 1.2, size) * np.linspace(1, 2, size)
        top1 = (generator.random(size) > kl / 4).astype(float)
        parts = np.flatnonzero(top1 == 0)
        top5 = np.round(generator.uniform(0.8, 1, size) * 5) / 5
        first = int(parts[0]) if parts.size else None
        found.append(
            LogitFinding(
                text.example,
                *(tuple(map(float, values)) for values in (kl, top1, top5)),
                first,
            )
        )
    return tuple(found)


def make_check_result(num_blocks=32, num_layers=28, per_task=60, *, broken=True, seed=0):
    """A CheckResult of the size of Qwen2-VL-2B; broken: two fc2 of the ViT are nearly noise."""
    generator = np.random.default_rng(seed)
    embeddings = []
    for level, size in (("pixel_values", 0.0), ("before_merger", 0.02), ("image_embeds", 0.025)):
        for i in range(24):
            bucket = (*BUCKETS, "clip 84x84x2")[i % 4]
            error = size * (9 if broken else 1) * float(generator.lognormal(0, 0.2)) * (1 + i % 4)
            embeddings.append(
                EmbeddingFinding(
                    level,
                    f"receipt/{i:04d}",
                    bucket,
                    1 - error**2 / 2,
                    -20 * float(np.log10(error)) if error else 200.0,
                    error * 8,
                    error,
                )
            )
    texts = make_texts(generator, per_task, broken)
    tasks = []
    for task in TASKS:
        mine = [text for text in texts if text.task == task]
        scores = ([t.reference_score for t in mine], [t.got_score for t in mine])
        tasks.append(score_task(task, "exact_match", *scores))
    return CheckResult(
        bundle="reader-2b-orin",
        reference="reader-2b-fp32",
        data="held-out.jsonl",
        data_sha256="3f2b" * 16,
        num_examples=len(texts),
        skipped={"receipt/9999": "picture receipts/9999.png is missing"},
        settings=(
            SettingFinding("tokens.eos", "[151643, 151645]", "[151643, 151645]"),
            SettingFinding("mrope_rule", '"paper"', '"paper"'),
        ),
        embeddings=tuple(embeddings),
        logits=make_logits(generator, texts, broken),
        texts=texts,
        tasks=tuple(tasks),
        speed=(
            SpeedFinding("vision", "ms", (412.0, 409.5, 430.1), (268.4, 266.0, 275.2)),
            SpeedFinding("prefill", "ms", (655.0, 640.2, 661.3), (498.1, 497.0, 512.4)),
            SpeedFinding("decode", "ms a token", (81.2, 80.9, 82.0), (33.9, 34.4, 33.1)),
            SpeedFinding("peak_memory", "MiB", (9312.0, 9310.0, 9312.0), (2744.0, 2745.0, 2744.0)),
        ),
        layers=make_layer_findings(generator, num_blocks, num_layers, broken),
        environment={"onnxruntime": "1.23.2", "processor": "x86_64, 8 cores", "threads": "4"},
    )


@pytest.fixture(scope="session")
def make_check():
    """`make_check_result`."""
    return make_check_result


@pytest.fixture(scope="session")
def broken_check():
    """A small check in which two layers of the ViT are broken."""
    return make_check_result(6, 4, 12)


@pytest.fixture(scope="session")
def good_check():
    """A small check of a bundle that may ship."""
    return make_check_result(6, 4, 12, broken=False)


def draw_picture(seed, width, height):
    """Noise over a slope: no two channels, rows or columns alike."""
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 200, width)[None, :, None] * generator.random(3)
    levels = slope + generator.integers(0, 56, (height, width, 3))
    return Image.fromarray(levels.astype(np.uint8))


@pytest.fixture(scope="session")
def question_folder(tmp_path_factory):
    """A folder with data.jsonl: a picture, two pictures, a clip; with and without an answer."""
    folder = tmp_path_factory.mktemp("questions")
    sizes = {"a": (90, 60), "b": (56, 84), "c": (60, 60)} | {f"f{i}": (60, 90) for i in range(4)}
    for seed, (name, size) in enumerate(sizes.items()):
        draw_picture(seed, *size).save(folder / f"{name}.png")
    lines = [
        {"id": "one", "image": "a.png", "question": "What is it?", "answer": "a slope"},
        {"id": "two", "images": ["b.png", "c.png"], "question": "Which one is larger?"},
        {"id": "clip", "video": [f"f{i}.png" for i in range(4)], "question": "What moves?"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "data.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="session")
def questions(question_folder):
    """They as a DataSet."""
    return open_data(str(question_folder))


@pytest.fixture(scope="session")
def quantize(make_bundle, questions, tmp_path_factory):
    """quantize(preset or TOML, size="tiny", weights="fp32"): each bundle is made once a session."""
    made = {}

    def make(text, size="tiny", weights="fp32"):
        key = (text, size, weights)
        if key not in made:
            source = make_bundle(size, weights).bundle
            recipe = parse_recipe(text, "a test's recipe") if "\n" in text else open_recipe(text)
            target = tmp_path_factory.mktemp("quantized") / recipe.name
            data = questions if recipe.needs_data else None
            result = quantize_bundle(source, target, recipe, data, num_threads=1)
            made[key] = SimpleNamespace(
                source=source, bundle=target, recipe=recipe, result=result, manifest=result.manifest
            )
        return made[key]

    return make


@pytest.fixture(scope="session")
def run_graph():
    """run_graph(bundle, graph, feed): what onnxruntime makes of a bundle's file, by name."""

    def run(bundle, graph, feed, wanted=None):
        spec = read_manifest(bundle).graphs[graph]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in make_entries(bundle / spec.file, keep_qdq=spec.keep_qdq).items():
            options.add_session_config_entry(key, value)
        session = ort.InferenceSession(bundle / spec.file, options, ["CPUExecutionProvider"])
        names = wanted or [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))

    return run


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """The trained sample model as a float bundle, and one drawn example of each of its tasks."""
    folder = tmp_path_factory.mktemp("reader")
    export_checkpoint(SAMPLES / "reader", folder / "fp32", ExportOptions("fp32"))
    (folder / "data").mkdir()
    config = draw_sample_data.Config(
        folder / "data", "calibration", 1, tuple(draw_sample_data.TASKS)
    )
    draw_sample_data.draw_split(config.out, config)
    return SimpleNamespace(bundle=folder / "fp32", data=open_data(str(config.out)))
