"""TensorRT's log: what must stop a build, what is told, what nobody needs to read."""

from types import SimpleNamespace

import pytest

from vlmedge.export.engines.messages import (
    EXPECTED,
    HARMLESS,
    MAX_LINE,
    REFUSALS,
    Message,
    describe_parser_error,
    find_refusals,
    list_errors,
    list_warnings,
    shorten,
)

# As TensorRT and its parser say them
SILENT = [
    "Unused Input: nonpad_kv_seqlen",
    "[RemoveDeadLayers] Input Tensor mask is unused or used only at compile-time, "
    "but is not being removed.",
    "Missing scale and zero-point for tensor (Unnamed Layer* 3) [Shuffle]_output, expect fall back "
    "to non-int8 implementation for any layer consuming or producing given tensor",
    "Calibrator is not being used. Users must provide dynamic range for all tensors that are not "
    "Int32 or Bool.",
    "TensorRT encountered issues when converting weights between types and that could affect "
    "accuracy.",
    "Weights [name=fc1.weight] had the following issues when converted to FP16:",
    "Your ONNX model has been generated with INT64 weights, while TensorRT does not natively "
    "support INT64. Attempting to cast down to INT32.",
    "One or more weights outside the range of INT32 was clamped",
    "Layer /visual/Conv is not supported on DLA, falling back to GPU",
    "No importer registered for op: NonZero. Attempting to import as plugin.",
    "Found BatchNormalization node with non-initializer inputs, using Elementwise fallback",
]
LOUD_ENOUGH = [
    "DLA requests all profiles have same min, max, and opt value. All dla layers are falling back "
    "to GPU",
    "Tactic Device request: 1024MB Available: 512MB. Device memory is insufficient to use tactic.",
    "Myelin graph with multiple dynamic values may have poor performance if they differ.",
    "CUDA lazy loading is not enabled. Enabling it can significantly reduce device memory usage.",
    "Using default for use_input_fallback_range timing cache",
    "Virtual memory management failed. Falling back to regular allocation.",
    "Loop has insufficient context to run in auto-tuner. Falling back to heuristic estimate of "
    "execution time.",
]


@pytest.mark.parametrize("text", SILENT)
def test_a_warning_of_something_done_differently_is_an_error(text):
    (line,) = find_refusals([Message("warning", text)])
    assert line.startswith(text[:60])
    assert line.endswith(")")
    assert list_warnings([Message("warning", text)]) == []


@pytest.mark.parametrize("text", LOUD_ENOUGH)
def test_a_warning_of_speed_or_memory_is_told_and_no_error(text):
    assert find_refusals([Message("warning", text)]) == []
    assert list_warnings([Message("warning", text)]) == [text]


def test_what_every_build_says_is_not_told():
    said = Message(
        "warning", "ModelImporter.cpp:1071: Make sure input position_ids has Int64 binding."
    )
    assert find_refusals([said]) == []
    assert list_warnings([said]) == []


def test_an_accepted_warning_is_told_and_no_error():
    messages = [Message("warning", "Unused Input: spare"), Message("warning", "Unused Input: mask")]
    (line,) = find_refusals(messages, ["unused input: SPARE"])
    assert line.startswith("Unused Input: mask")
    assert list_warnings(messages, ["unused input: SPARE"]) == ["Unused Input: spare"]


def test_every_pattern_has_a_reason():
    for pattern in (*REFUSALS, *HARMLESS, *EXPECTED):
        assert len(pattern.reason.split()) > 2, pattern.pattern


def test_only_warnings_are_refused_and_each_is_told_once():
    messages = [Message("error", "Unused Input: a"), *[Message("warning", "Unused Input: b")] * 3]
    assert len(find_refusals(messages)) == 1
    assert list_errors(messages) == ["Unused Input: a"]


def test_a_warning_said_often_is_one_line_with_a_count():
    messages = [Message("warning", "slow")] * 3 + [Message("warning", "small")]
    assert list_warnings(messages) == ["slow (3 times)", "small"]


def test_a_message_of_many_lines_is_one_and_not_endless():
    assert shorten("a\n  b\tc") == "a b c"
    assert len(shorten("x" * 9999)) == MAX_LINE


def make_error(name, operator):
    return SimpleNamespace(
        node_name=lambda: name,
        node_operator=lambda: operator,
        node=lambda: 12,
        code=lambda: "ErrorCode.UNSUPPORTED_NODE",
        desc=lambda: "only one output\nis supported",
    )


def test_a_parser_error_begins_with_the_node():
    assert describe_parser_error(make_error("/model/layers.0/attn", "Attention")) == (
        "/model/layers.0/attn (Attention): only one output is supported [UNSUPPORTED_NODE]"
    )


def test_a_node_without_a_name_is_named_by_its_place():
    assert describe_parser_error(make_error("", "Attention")).startswith("node 12 (Attention): ")
    assert describe_parser_error(make_error("", "")).startswith("graph: ")
