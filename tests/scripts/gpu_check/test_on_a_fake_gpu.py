"""The whole check on a GPU that is none: every step but torch's, in order, in this process.

Engines are ONNX files that ONNX Runtime runs behind the runtime's own GPU interface.
"""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_check.plan import list_steps
from gpu_check.record import SkippedError, StepRecord, read_record, write_record
from gpu_check.report import describe_probe, make_json, make_markdown
from gpu_check.runner import check_needs

FAKES = Path(__file__).parents[2] / "runtime" / "backends" / "trt"


def load_fake(name):
    full = f"trt_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, FAKES / f"{name}.py")
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture
def gpu(monkeypatch):
    """The fakes in place of CUDA, TensorRT-RTX's builder and its runtime."""
    from vlmedge.runtime.backends.trt.backend import TrtBackend
    from vlmedge.runtime.backends.trt.choose import choose_set
    from vlmedge.runtime.backends.trt.engine_set import list_engines, read_engine_set
    from vlmedge.runtime.bundle.manifest_file import read_manifest

    fake_driver, fake_engine = load_fake("fake_driver"), load_fake("fake_engine")

    def open_engines(folder, manifest, *, residency, guard=None):
        driver = fake_driver.FakeDriver()
        chosen = choose_set(folder, manifest, driver.gpu, {"tensorrt": "10.3.0"})
        loader = fake_engine.FakeLoader(driver, chosen.engine_set)
        return TrtBackend(manifest, chosen, driver, loader, residency=residency, guard=guard)

    def build_engines(bundle, settings=None, builder=None):
        assert read_manifest(bundle).target.name == builder.replace("_", "-")
        folder = load_fake("fake_build").build(bundle, settings)
        engine_set = read_engine_set(folder)
        names = [engine.name for engine in list_engines(engine_set)]
        return SimpleNamespace(
            folder=folder,
            engine_set=engine_set,
            seconds=dict.fromkeys(names, 1.0),
            peak_bytes=dict.fromkeys(names, 2**20),
            warnings={},
        )

    monkeypatch.setattr(
        "vlmedge.runtime.backends.trt.cuda_driver.CudaDriver", fake_driver.FakeDriver
    )
    monkeypatch.setattr("vlmedge.runtime.backends.trt.backend.open_engines", open_engines)
    monkeypatch.setattr("vlmedge.export.engines.build.build_engines", build_engines)
    monkeypatch.setattr("gpu_check.ceilings.COPY_BYTES", 2 << 20)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def run(config, step):
    """As one_step does, without a process."""
    if (record := check_needs(config, step)) is not None:
        return record
    module, _, function = step.function.partition(":")
    try:
        figures = getattr(import_module(module), function)(config, *step.args)
    except SkippedError as error:
        return StepRecord(step.name, "skipped", 0.0, str(error))
    failure = figures.pop("failure", "")
    return StepRecord(step.name, "failed" if failure else "ok", 1.0, failure, figures)


@pytest.fixture
def tried(monkeypatch):
    """Which targets the probe tried; the second runs."""
    targets = []

    def try_target(work, precision, target):
        targets.append(target)
        return "no kernel image" if len(targets) == 1 else None

    monkeypatch.setattr("gpu_check.probe.try_target", try_target)
    return targets


def test_every_step_comes_out_and_the_report_has_it(
    make_config, make_bundle, monkeypatch, gpu, tried
):
    monkeypatch.setattr("gpu_check.bundles.SAMPLE", make_bundle("tiny").checkpoint)
    monkeypatch.setattr("gpu_check.compare.NUM_TOKENS", 4)
    config = make_config(precisions=("fp16", "int4"), dry_run=False, context=512)
    steps = list_steps(config)
    records = {}
    for step in steps:
        records[step.name] = run(config, step)
        write_record(config.work, records[step.name])
    bad = {name: each.reason for name, each in records.items() if each.status not in ("ok",)}
    assert set(bad) <= {"torch", "onnxruntime"}, bad
    # The fakes run the reference's own kernels.
    figures = records["sample.fp16.compare"].figures
    assert figures["equal_tokens"] == figures["tokens"]
    assert figures["logits_error"] < 1e-3
    assert records["probe"].figures["tried"] == {tried[0]: "no kernel image"}
    assert records["probe"].figures["target"] == tried[1]
    assert set(records["model.int4.times"].figures["vision_ms"]) == {"56", "112"}

    content = make_json(config, steps)
    assert content["not_run"] == []
    assert [row["name"] for row in content["rows"]] == ["vlmedge fp16", "vlmedge int4"]
    assert all(row["decode_share"] > 0 for row in content["rows"])
    text = make_markdown(config, steps)
    assert "Fake (sm 8.7" in text
    assert "| vlmedge int4 |" in text
    assert "no kernel image" in text
    assert str(config.work) not in text + str(content["settings"])


def test_when_nothing_runs_the_probe_says_why_of_each_and_engines_are_blocked(
    make_config, gpu, monkeypatch
):
    config = make_config(precisions=("fp16",), dry_run=False)
    monkeypatch.setattr("gpu_check.probe.try_target", lambda work, precision, target: "no kernel")
    gpu_record = {"gpu": {"name": "H100", "sm": "9.0"}}
    write_record(config.work, StepRecord("machine", "ok", 1.0, "", gpu_record))
    from gpu_check.probe import find_target

    with pytest.raises(
        RuntimeError, match=r"does not run on H100: any: no kernel; CURRENT: .*SM80"
    ):
        find_target(config, "fp16")
    write_record(config.work, StepRecord("probe", "failed", 1.0, "it does not run"))
    write_record(config.work, StepRecord("sample.fp16.bundle", "ok", 1.0))
    steps = {step.name: step for step in list_steps(config)}
    assert check_needs(config, steps["sample.fp16.engines"]).status == "blocked"
    # What stands in for it goes on.
    write_record(config.work, StepRecord("checkpoint", "ok", 1.0))
    assert check_needs(config, steps["torch"]) is None
    assert "gave no result on this GPU" in describe_probe(read_record(config.work, "probe"))


def test_the_process_that_tries_a_target_tells_how_it_ended(make_config, tmp_path):
    from gpu_check.probe import try_target

    reason = try_target(tmp_path / "nothing", "fp16", "any")
    assert reason is not None
    assert "config.json" in reason or "ModuleNotFoundError" in reason
