"""Checks of bundles for TensorRT: the same looks into the graphs as into those for ONNX Runtime."""

import numpy as np
import pytest

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.quant.compare.layer_walk import LayeredBundle
from vlmedge.quant.compare.observe import find_merger_inputs
from vlmedge.quant.data.examples import Example
from vlmedge.quant.graph.feeds import make_prompts, make_target_feed
from vlmedge.quant.graph.files import read_graph
from vlmedge.runtime.bundle.manifest import TargetRecord
from vlmedge.runtime.bundle.manifest_file import read_manifest

TARGETS = ["jetpack-6.2", "jetpack-7.2"]  # one of each cache mode


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("tiny").bundle


@pytest.fixture(scope="module", params=TARGETS)
def twin(request, bundle, tmp_path_factory):
    """The bundle's float32 twin for a target."""
    folder = tmp_path_factory.mktemp("twin") / request.param
    export_for_target(bundle, folder, LoweringOptions(request.param, "fp32"))
    return folder


def trace(folder):
    """Output rows of every layer for one prompt with a picture."""
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    example = Example("0", ({"role": "user", "content": content},))
    prompts = make_prompts(folder, read_manifest(folder), [example])
    bundle, rows = LayeredBundle(folder, 1), {}

    def keep(name, _number, _x, y):
        rows[name] = np.array(y)

    bundle.trace(prompts, list(bundle.layers), keep, lambda _: None)
    return rows


def test_every_layer_of_a_twin_gives_what_the_float_bundle_gives(bundle, twin):
    wanted, got = trace(bundle), trace(twin)
    assert list(got) == list(wanted)
    assert len(got) > 10
    for name, rows in wanted.items():
        # float32 in another order of operations
        np.testing.assert_allclose(got[name], rows, atol=1e-4 * np.abs(rows).max(), err_msg=name)


def test_the_sum_before_the_merger_is_found_in_either_form(bundle, twin):
    for folder in (bundle, twin):
        graph = read_graph(folder, read_manifest(folder), "vision").graph
        residual, branch = find_merger_inputs(graph)
        made = {output for node in graph.node for output in node.output}
        assert {residual, branch} <= made
        assert "mlp/fc2" in branch


@pytest.mark.parametrize(("cache", "width"), [("in_place", 3), ("append", 6)])
def test_a_prompt_in_one_call_looks_at_its_own_past_only(cache, width):
    feed = make_target_feed(TargetRecord("x", "10.3", "float32", cache, None), 3)
    mask = feed["attention_mask"]
    assert mask.shape == (1, 1, 3, width)
    assert feed["write_indices"].tolist() == [0]
    np.testing.assert_array_equal(mask[0, 0, :, width - 3 :], np.tri(3, dtype=bool))
    assert not mask[0, 0, :, : width - 3].any()
