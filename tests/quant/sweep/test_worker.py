"""What a worker does, called as a worker is: JSON in, JSON out."""

import json

import pytest
from PIL import Image

from vlmedge.quant.data.open_data import open_data
from vlmedge.quant.report.result_json import parse_result
from vlmedge.quant.sweep.process_pool import call_function

UNITS = "vlmedge.quant.sweep.worker"


@pytest.fixture
def data(tmp_path):
    rows = []
    for name, size in (("a", (56, 28)), ("b", (28, 28)), ("c", (28, 56))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        parts = [{"type": "image", "image": f"{name}.png"}, {"type": "text", "text": "What?"}]
        rows.append({"id": name, "messages": [{"role": "user", "content": parts}], "answer": "x"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "source": str(tmp_path / "data.jsonl"),
        "limit": None,
        "seed": 0,
        "skip_bad": False,
        "task": None,
        "sha256": open_data(str(tmp_path / "data.jsonl")).sha256,
    }


def call(name, **kwargs):
    """As in a worker: through text, both ways."""
    answer = call_function(f"{UNITS}:{name}", json.loads(json.dumps(kwargs)))
    return json.loads(json.dumps(answer, allow_nan=False))


def check(bundle, data, **changes):
    kwargs = {"bundle": str(bundle), "against": str(bundle), "data": data, "shard": 0}
    kwargs |= {"num_shards": 2, "levels": ["embeddings", "texts"], "max_new_tokens": 3}
    return call("check_shard", **kwargs | {"num_speed_runs": 1, "num_threads": 1} | changes)


def test_a_shard_is_checked(make_bundle, data):
    bundle = make_bundle("tiny").bundle
    reports = [check(bundle, data, shard=shard) for shard in range(2)]
    results = [parse_result(json.dumps(report["value"])) for report in reports]
    assert [[text.example for text in result.texts] for result in results] == [["a", "c"], ["b"]]
    assert {result.data_sha256 for result in results} == {data["sha256"]}
    assert all(finding.cosine == pytest.approx(1) for finding in results[0].embeddings)


def test_data_that_changed_since_the_start_is_refused(make_bundle, data):
    answer = check(make_bundle("tiny").bundle, data | {"sha256": "00" * 32})
    assert "has changed since the sweep was started" in answer["error"]


def test_a_bundle_is_quantized_and_can_be_checked(make_bundle, data, tmp_path):
    source, bundle = make_bundle("tiny").bundle, tmp_path / "made" / "here"
    recipe = 'name = "plain"\n[decoder]\nformat = "int8-weight"\nblock_size = 32\n'
    kwargs = {"source": str(source), "bundle": str(bundle), "recipe": recipe, "data": None}
    made = call("quantize", **kwargs, num_threads=1)["value"]
    files = sum(path.stat().st_size for path in bundle.iterdir() if path.name != "manifest.json")
    assert made["bytes"] == files
    assert made["peak_bytes"] > 1 << 20
    assert "value" in check(bundle, data, against=str(source))


def test_a_recipe_that_needs_pictures_gets_them(make_bundle, data, tmp_path):
    recipe = 'name = "static"\n[vision]\nformat = "int8"\nranges = "minmax"\nsmooth = "off"\n'
    kwargs = {"source": str(make_bundle("tiny").bundle), "recipe": recipe, "num_threads": 1}
    made = call("quantize", **kwargs, bundle=str(tmp_path / "made"), data=data)
    assert "value" in made
    answer = call("quantize", **kwargs, bundle=str(tmp_path / "not"), data=None)
    assert "needs real pictures to calibrate with" in answer["error"]
    assert not (tmp_path / "not").exists()


def test_a_checkpoint_is_exported(make_bundle, tmp_path):
    made = make_bundle("tiny")
    bundle = tmp_path / "deep" / "float"
    answer = call("export_float", checkpoint=str(made.checkpoint), bundle=str(bundle))
    assert answer["value"]["bytes"] > 0
    first, second = ((b / "manifest.json").read_bytes() for b in (bundle, made.bundle))
    assert json.loads(first)["files"] == json.loads(second)["files"]


def test_without_an_exporter_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmedge.quant.sweep.worker.entry_points", lambda **_: [])
    answer = call("export_float", checkpoint="Owner/Name", bundle=str(tmp_path / "b"))
    assert "pip install 'vlmedge[export]'" in answer["error"]
