"""What the rules share: heads apart and together, standard operators in one type."""

import numpy as np
import onnx
import pytest

from vlmedge.export.graphs.data_file import DataFile
from vlmedge.export.lowering.context import Lowering, read_attributes
from vlmedge.export.lowering.emitter import Emitter
from vlmedge.export.lowering.initializers import Initializers
from vlmedge.export.lowering.targets import TARGETS


@pytest.fixture
def lowering():
    """A graph with the value x of float16 and two float32 constants."""
    arrays = {"factor": np.array(0.5, np.float32), "index": np.array([1], np.int64)}
    source = onnx.ModelProto()
    source.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    emitter = Emitter("float16")
    emitter.types |= {"x": "float16", "ids": "int64", "wide": "float32"}
    weights = Initializers(emitter, source, {}, DataFile("none"))
    return Lowering(emitter, weights, TARGETS["jetpack-6.2"], "append", 8)


def test_heads_are_split_once_and_joined_when_the_value_is_wanted(lowering):
    first = lowering.split_heads("x", 4, "/a")
    assert lowering.split_heads("x", 4, "/b") == first
    assert [node.op_type for node in lowering.emitter.nodes] == ["Reshape", "Transpose"]
    lowering.heads["rotated"] = first  # a value that exists as heads only
    assert lowering.value("rotated") == "rotated"
    assert [node.op_type for node in lowering.emitter.nodes[2:]] == ["Transpose", "Reshape"]
    assert lowering.emitter.types["rotated"] == "float16"
    count = len(lowering.emitter.nodes)
    lowering.value("rotated")
    assert len(lowering.emitter.nodes) == count


def test_constants_of_a_standard_operator_take_the_type_of_its_values(lowering):
    for value, kind in (("x", "float16"), ("wide", "float32")):
        node = onnx.helper.make_node("Mul", [value, "factor"], [f"{value}.half"], f"/{value}/Mul")
        lowering.pass_through(node)
        made = lowering.emitter.nodes[-1]
        assert lowering.emitter.types[made.input[1]] == kind
        assert lowering.emitter.types[f"{value}.half"] == kind
    assert node.input[1] == "factor"  # the graph that is read is left alone


def test_values_of_two_float_types_are_cast_to_the_first(lowering):
    lowering.pass_through(onnx.helper.make_node("Add", ["x", "wide"], ["sum"], "/Add"))
    assert [node.op_type for node in lowering.emitter.nodes] == ["Cast", "Add"]
    assert lowering.emitter.types["sum"] == "float16"


def test_integers_pass_as_they_are(lowering):
    lowering.pass_through(onnx.helper.make_node("Gather", ["ids", "index"], ["one"], "/Gather"))
    assert lowering.emitter.types["one"] == "int64"
    assert lowering.emitter.types[lowering.emitter.nodes[-1].input[1]] == "int64"


@pytest.mark.parametrize(("kind", "needed"), [("Shape", "int64"), ("Abs", "float16")])
def test_results_have_their_own_type(lowering, kind, needed):
    lowering.pass_through(onnx.helper.make_node(kind, ["x"], ["y"], "/y"))
    assert lowering.emitter.types["y"] == needed


def test_attributes_are_read_by_name():
    node = onnx.helper.make_node("Split", ["x"], ["a"], axis=-1, num_outputs=2)
    assert read_attributes(node) == {"axis": -1, "num_outputs": 2}
