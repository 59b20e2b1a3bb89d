"""A TensorRT that is none: an "engine" is a whole ONNX file, and ONNX Runtime runs it on a CPU.

Shapes, profiles, addresses and scratch memory are checked as TensorRT would, or more strictly.
"""

import math
import weakref

import numpy as np
import onnxruntime as ort

from vlmedge.runtime.backends.trt.engine_set import list_engines
from vlmedge.runtime.errors import BackendError

SCRATCH_BYTES = 1 << 16  # times the number of profiles


class FakeLoader:
    """Deserializes the engines of a set."""

    def __init__(self, driver, engine_set, *, can_capture=True):
        self.driver = driver
        self.records = {record.file: record for record in list_engines(engine_set)}
        self.can_capture = can_capture
        self.loaded = []  # files, in order
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = 1
        self.options.log_severity_level = 4

    def __call__(self, data, where):
        file = where.rpartition("/")[2]
        self.loaded.append(file)
        session = ort.InferenceSession(bytes(data), self.options, ["CPUExecutionProvider"])
        return FakeEngine(self.driver, self.records[file], session, self.can_capture)


class FakeEngine:
    def __init__(self, driver, record, session, can_capture):
        self.driver = driver
        self.record = record
        self.session = session
        self.can_capture = can_capture
        self.inputs = {node.name: name_dtype(node.type) for node in session.get_inputs()}
        self.outputs = {node.name: name_dtype(node.type) for node in session.get_outputs()}
        self.num_profiles = len(record.profiles)
        self.taken = weakref.WeakValueDictionary()  # profile -> context
        self.shapes = {}  # of outputs, by those of inputs

    def measure_scratch(self):
        return SCRATCH_BYTES * self.num_profiles

    def make_context(self):
        return FakeContext(self)

    def infer(self, shapes):
        """Shapes of outputs: by a run on zeros."""
        key = tuple(sorted(shapes.items()))
        if key not in self.shapes:
            feed = {name: np.zeros(shape, self.inputs[name]) for name, shape in shapes.items()}
            values = self.session.run(list(self.outputs), feed)
            found = zip(self.outputs, values, strict=True)
            self.shapes[key] = {name: value.shape for name, value in found}
        return self.shapes[key]


class FakeContext:
    def __init__(self, engine):
        self.engine = engine
        self.driver = engine.driver
        self.profile = None
        self.shapes, self.addresses, self.scratch = {}, {}, None
        self.has_run = False  # with the present shapes
        self.calls = []

    def set_profile(self, profile, stream):
        self._refuse_recording()
        assert self.engine.taken.get(profile, self) is self, "another context is in this profile"
        for taken in [p for p, context in self.engine.taken.items() if context is self]:
            del self.engine.taken[taken]
        self.engine.taken[profile] = self
        self.profile = profile
        self.shapes, self.addresses, self.scratch, self.has_run = {}, {}, None, False

    def set_shape(self, name, shape):
        self._refuse_recording()
        self.calls.append(name)
        limits = self.engine.record.profiles[self.profile].shapes.get(name)
        if limits is not None and not all(
            a <= b <= c for a, b, c in zip(limits.min, shape, limits.max, strict=True)
        ):
            raise BackendError(f"the profile refuses {name} {shape}")
        self.shapes[name], self.has_run = tuple(shape), False

    def get_shape(self, name):
        assert set(self.shapes) == set(self.engine.inputs)
        return self.engine.infer(self.shapes)[name]

    def set_address(self, name, address):
        self._refuse_recording()
        assert address % 256 == 0, f"{name} is not aligned"
        assert name in self.engine.inputs or name in self.engine.outputs
        self.addresses[name] = address

    def set_scratch(self, address, num_bytes):
        self._refuse_recording()
        assert address % 256 == 0
        self.scratch = (address, num_bytes)

    def can_capture(self, stream):
        return self.engine.can_capture

    def enqueue(self, stream):
        engine, driver = self.engine, self.driver
        if driver.is_recording() and not self.has_run:
            raise BackendError("a context must run once before it is recorded")
        self.has_run = True
        assert set(self.shapes) == set(engine.inputs)
        assert set(self.addresses) == {*engine.inputs, *engine.outputs}
        assert self.scratch is not None
        assert self.scratch[1] >= engine.measure_scratch()
        shapes, addresses, scratch = dict(self.shapes), dict(self.addresses), self.scratch

        def run():
            driver.view(*scratch).fill(0xFF)  # whatever else is there is lost
            feed = {}
            for name, shape in shapes.items():
                dtype = np.dtype(engine.inputs[name])
                data = driver.view(addresses[name], math.prod(shape) * dtype.itemsize)
                feed[name] = data.copy().view(dtype).reshape(shape)
            values = engine.session.run(list(engine.outputs), feed)
            for name, value in zip(engine.outputs, values, strict=True):
                data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                driver.view(addresses[name], data.nbytes)[:] = data

        driver.put(stream, run)

    def _refuse_recording(self):
        assert not self.driver.is_recording(), "contexts may not be changed while recording"


def name_dtype(ort_type):
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32"}.get(name, name)
