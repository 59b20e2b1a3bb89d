"""trtexec's options -> one engine through TensorRT's Python module, on a device without trtexec.

An emitted script carries the text of this file: it imports nothing but the standard library and
TensorRT, knows no more options than script_options.py writes, and prints the lines of trtexec's
log that the script reads. On boards with little memory it also needs less than trtexec, which
loads the engine it has just built while it still holds the network.
"""

from __future__ import annotations

import ctypes
import fnmatch
import re
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

_SIDES = ("--minShapes", "--optShapes", "--maxShapes")
_SWITCHES = ("--skipInference", "--stronglyTyped", "--noTF32", "--allowWeightStreaming")
_LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I"}  # as trtexec logs
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of the CUDA driver


@dataclass
class Request:
    """What the options ask for."""

    values: dict[str, str] = field(default_factory=dict)
    profiles: list[dict[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)


def read_options(argv: list[str]) -> Request:
    """Read trtexec's options; the shapes that follow a --profile are that profile's.

    Raises:
        ValueError: an option that the script never writes, or profiles out of order.
    """
    request = Request()
    known = ("--onnx", "--saveEngine", "--timingCacheFile", "--memPoolSize")
    known += ("--builderOptimizationLevel",)
    for argument in argv:
        name, _, value = argument.partition("=")
        if name == "--profile":
            if int(value) != len(request.profiles):
                raise ValueError(f"profile {value} follows {len(request.profiles)} others")
            request.profiles.append({})
        elif name in _SIDES and request.profiles:
            request.profiles[-1][name] = read_shapes(value)
        elif name in known and value:
            request.values[name] = value
        elif argument in _SWITCHES:
            request.values[name] = ""
        else:
            raise ValueError(f"option {argument} is not known here")
    return request


def read_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """ids:1x2,past.*.key:1x2x3 -> the sides by the pattern of an input's name."""
    pairs = (item.rpartition(":") for item in text.split(","))
    return {name: tuple(map(int, sides.split("x"))) for name, _, sides in pairs}


def find_shape(shapes: dict[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    """The sides given for an input: under its own name, else under a pattern that it matches."""
    if name in shapes:
        return shapes[name]
    return next((sides for key, sides in shapes.items() if fnmatch.fnmatchcase(name, key)), None)


def read_bytes(text: str) -> int:
    """workspace:2048M -> bytes.

    Raises:
        ValueError: another pool, or another unit.
    """
    found = re.fullmatch(r"workspace:(\d+)M", text)
    if found is None:
        raise ValueError(f"memory pool is {text!r}, needed workspace and MiB, as in workspace:512M")
    return int(found[1]) << 20


def describe_gpu() -> tuple[str, str]:
    """Name and compute capability of the first GPU, asked of the CUDA driver.

    Raises:
        OSError: there is no driver, or it refuses.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    for call, arguments in (
        (cuda.cuInit, (0,)),
        (cuda.cuDeviceGet, (ctypes.byref(device), 0)),
        (cuda.cuDeviceGetName, (name, len(name), device)),
        (cuda.cuDeviceGetAttribute, (ctypes.byref(major), _CAPABILITY_MAJOR, device)),
        (cuda.cuDeviceGetAttribute, (ctypes.byref(minor), _CAPABILITY_MINOR, device)),
    ):
        if code := call(*arguments):
            raise OSError(f"{call.__name__} of the CUDA driver returned {code}")
    return name.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}"


def build(request: Request, trt: Any) -> None:
    """Parse, build and write one engine.

    Args:
        request: the options.
        trt: the module `tensorrt`.

    Raises:
        RuntimeError: TensorRT refused; its log says why.
    """
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    flags = 0
    if "--stronglyTyped" in request.values:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.values["--onnx"]):
        for index in range(parser.num_errors):
            print(f"[E] {parser.get_error(index)}")
        raise RuntimeError("the parser refused the graph")
    config = _make_config(request, trt, builder, network)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the builder made no engine")
    with Path(request.values["--saveEngine"]).open("wb") as file:
        file.write(plan)
    cache = config.get_timing_cache() if "--timingCacheFile" in request.values else None
    if cache is not None:
        Path(request.values["--timingCacheFile"]).write_bytes(cache.serialize())


def _make_logger(trt: Any) -> Any:
    """Lines as trtexec prints them: "[W] [TRT] text"."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            letter = _LETTERS.get(str(severity).rpartition(".")[2])
            if letter is not None:  # no verbose ones
                print(f"[{letter}] [TRT] {message}", flush=True)

    return Logger()


def _make_config(request: Request, trt: Any, builder: Any, network: Any) -> Any:
    config = builder.create_builder_config()
    values = request.values
    if "--noTF32" in values:
        config.clear_flag(trt.BuilderFlag.TF32)
    if "--memPoolSize" in values:
        size = read_bytes(values["--memPoolSize"])
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if "--builderOptimizationLevel" in values:
        config.builder_optimization_level = int(values["--builderOptimizationLevel"])
    if "--allowWeightStreaming" in values:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if "--timingCacheFile" in values:
        path = Path(values["--timingCacheFile"])
        _set_timing_cache(config, path.read_bytes() if path.is_file() else b"")
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for tensor in (each for each in inputs if -1 in tuple(each.shape)):
            sides = [find_shape(shapes[side], tensor.name) for side in _SIDES]
            if None in sides:
                raise RuntimeError(f"no shapes for the dynamic input {tensor.name}")
            profile.set_shape(tensor.name, *sides)
        config.add_optimization_profile(profile)
    return config


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Use what was measured before; of another GPU or TensorRT it is told and left."""
    cache = config.create_timing_cache(content)
    if not config.set_timing_cache(cache, ignore_mismatch=False) and content:
        print("[W] the timing cache is of another GPU or TensorRT: made anew", flush=True)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def main(argv: list[str]) -> int:
    """`--version`, `--gpu`, or the options of one engine."""
    tensorrt = import_module("tensorrt")
    try:
        if argv == ["--version"]:
            print(tensorrt.__version__)
        elif argv == ["--gpu"]:
            name, capability = describe_gpu()
            print(f"Selected Device: {name}\nCompute Capability: {capability}")
        else:
            build(read_options(argv), tensorrt)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"[E] {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
