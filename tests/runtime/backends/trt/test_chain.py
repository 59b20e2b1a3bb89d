"""Values between engines, and what is told to contexts when; whole answers: test_backend.py."""

from types import SimpleNamespace

import pytest

from vlmedge.runtime.backends.trt.chain import Binding, Chain
from vlmedge.runtime.backends.trt.engine_set import EngineRecord, Profile, ShapeRange
from vlmedge.runtime.backends.trt.memory import Scratch
from vlmedge.runtime.bundle.manifest import TensorSpec
from vlmedge.runtime.errors import BackendError


class Context:
    """Notes what it is told; each output is twice as wide as the input."""

    def __init__(self, record):
        self.record, self.told, self.runs, self.shapes = record, [], 0, {}

    def set_profile(self, profile, stream):
        self.told.append(("profile", profile))

    def set_shape(self, name, shape):
        self.told.append(("shape", name, shape))
        self.shapes[name] = shape

    def get_shape(self, name):
        rows, columns = self.shapes[self.record.inputs[0].name]
        return rows, 2 * columns

    def set_address(self, name, address):
        self.told.append(("address", name, address))

    def set_scratch(self, address, num_bytes):
        self.told.append(("scratch", address, num_bytes))

    def can_capture(self, stream):
        return True

    def enqueue(self, stream):
        self.runs += 1


def make_record(name, source, target, profiles):
    return EngineRecord(
        name,
        f"{name}.engine",
        1,
        "0" * 64,
        (TensorSpec(source, "float32", ("rows", "columns")),),
        (TensorSpec(target, "bfloat16", ("rows", "columns")),),
        tuple(Profile(use, {source: ShapeRange((1, 1), (1, 1), most)}) for use, most in profiles),
    )


@pytest.fixture
def made(driver):
    """x -> [first] -> y -> [second] -> z, in profiles of up to 4 and up to 16 rows."""
    profiles = (("prefill", (4, 8)), ("prefill", (16, 8)), ("decode", (1, 8)))
    wide = (("prefill", (16, 16)), ("decode", (1, 16)))
    contexts = []

    needs = {"first": 300, "second": 300}  # bytes of scratch memory

    def make_engine(record):
        def make_context():
            contexts.append(Context(record))
            return contexts[-1]

        return SimpleNamespace(
            make_context=make_context, measure_scratch=lambda: needs[record.name]
        )

    records = make_record("first", "x", "y", profiles), make_record("second", "y", "z", wide)
    engines = [(record, make_engine(record)) for record in records]
    stream = driver.make_stream()
    scratch = Scratch(driver, stream)
    chain = Chain(driver, stream, scratch, engines)
    return SimpleNamespace(
        chain=chain, contexts=contexts, scratch=scratch, driver=driver, needs=needs
    )


def bind(rows, columns=8, **shapes):
    return Binding({"x": (rows, columns), **shapes}, {"x": 1 << 20, "z": 1 << 21})


def test_what_one_engine_makes_the_next_one_gets_at_the_same_address(made):
    made.chain.enqueue("prefill", bind(3))
    first, second = made.contexts
    assert ("shape", "y", (3, 16)) in second.told
    (left,) = [call[2] for call in first.told if call[:2] == ("address", "y")]
    assert ("address", "y", left) in second.told
    assert len(made.driver.view(left, 3 * 16 * 2)) == 96  # bfloat16
    assert [first.runs, second.runs] == [1, 1]


def test_nothing_is_told_twice(made):
    binding = bind(3)
    made.chain.enqueue("prefill", binding)
    told = [list(context.told) for context in made.contexts]
    made.chain.enqueue("prefill", binding)
    made.chain.enqueue("prefill", bind(3))
    assert [context.told for context in made.contexts] == told
    assert made.contexts[0].runs == 3


def test_a_new_profile_is_told_its_shapes_and_addresses_again(made):
    made.chain.enqueue("prefill", bind(3))
    first, second = made.contexts
    first.told.clear()
    second.told.clear()
    made.chain.enqueue("prefill", bind(9))
    assert [call[0] for call in first.told] == [
        *("profile", "shape", "address", "address", "scratch")
    ]
    # Another shape in the profile it is in, and the value it reads has moved.
    assert [call[0] for call in second.told] == ["shape", "address"]


@pytest.mark.parametrize("num_bytes", [0, 1, 256])
def test_scratch_is_told_even_to_engines_that_need_none(made, num_bytes):
    made.needs["first"], made.needs["second"] = num_bytes, 0
    made.chain.enqueue("prefill", bind(3))
    assert made.scratch.num_bytes == 256
    for context in made.contexts:
        assert context.told[-1] == ("scratch", made.scratch.address, 256)


def test_scratch_is_as_large_as_the_neediest_engines(made):
    made.needs["second"] = 3000
    made.chain.enqueue("prefill", bind(3))
    assert {context.told[-1] for context in made.contexts} == {
        ("scratch", made.scratch.address, 3072)
    }


def test_each_use_has_contexts_and_values_of_its_own(made):
    made.chain.enqueue("prefill", bind(1))
    version = made.chain.get_version("prefill")
    made.chain.enqueue("decode", bind(1))
    assert made.chain.get_version("prefill") == version
    assert len(made.contexts) == 4
    lefts = [c[2] for context in made.contexts for c in context.told if c[:2] == ("address", "y")]
    assert len(set(lefts)) == 2
    assert ("profile", 2) in made.contexts[2].told


def test_the_version_changes_with_shapes_addresses_and_scratch(made):
    seen = set()
    for binding in (bind(1), bind(2), Binding({"x": (2, 8)}, {"x": 1 << 22, "z": 1 << 21})):
        made.chain.enqueue("prefill", binding)
        seen.add(made.chain.get_version("prefill"))
        made.chain.enqueue("prefill", binding)
        assert made.chain.get_version("prefill") in seen
    made.scratch.reserve(10_000)
    seen.add(made.chain.get_version("prefill"))
    assert len(seen) == 4
    made.chain.enqueue("prefill", binding)
    assert made.contexts[0].told[-1] == ("scratch", made.scratch.address, 10_240)


def test_shapes_beyond_every_profile_are_told(made):
    with pytest.raises(BackendError, match=r"no prefill profile of first\.engine holds x \(17, 8"):
        made.chain.enqueue("prefill", bind(17))


def test_a_value_that_nobody_makes_is_told(made):
    with pytest.raises(BackendError, match=r"first\.engine needs x"):
        made.chain.enqueue("prefill", Binding({}, {}))


def test_an_output_of_another_size_than_its_memory_is_never_written(made):
    with pytest.raises(BackendError, match=r"second\.engine makes z \(3, 32\), needed \(3, 31\)"):
        made.chain.enqueue("prefill", bind(3, z=(3, 31)))
    assert [context.runs for context in made.contexts] == [0, 0]


def test_after_a_refusal_everything_is_told_again(made):
    made.chain.enqueue("prefill", bind(3))
    with pytest.raises(BackendError):
        made.chain.enqueue("prefill", bind(17))
    made.chain.enqueue("prefill", bind(3))
    assert made.contexts[0].runs == 2


def test_freed_engines_do_not_run(made):
    made.chain.enqueue("prefill", bind(3))
    made.chain.free()
    with pytest.raises(BackendError, match="freed"):
        made.chain.enqueue("prefill", bind(3))
    assert made.chain.get_version("prefill") == (0, made.scratch.address)
    made.scratch.free()
    assert made.driver.blocks == {}
