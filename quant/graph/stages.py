"""A graph of a bundle, cut between its layers and run one stage at a time over many inputs.

A stage is what stands before the first layer, one layer, or what stands behind the last. Only the
running stage's weights are in memory, and between two stages only what the later ones still need
of each input: a 2B decoder is calibrated in a few hundred MB instead of its 6 GB of float32.

A `Walk` takes one graph through its stages; walks of a float and a quantized bundle of one model
have the same stages and the same value names, so they can be taken side by side.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ...runtime.backends.ort.exact_products import make_entries
from ...runtime.errors import BundleError
from ...runtime.threads import check_num_threads

Tensors = dict[str, NDArray]
# (index of the input, the stage's tapped values) after each input has gone through a stage
OnTaps = Callable[[int, Tensors], None]
# a stage as a model -> what is run in its place, inputs and outputs the same
Change = Callable[[onnx.ModelProto], onnx.ModelProto]

FIRST, LAST = "embed", "head"
_LAYER = re.compile(r"^/(visual/blocks|model/layers)[./](\d+)[./]")
_TAIL = ("/visual/merger", "/visual/image_embeds", "/model/norm", "/lm_head")
_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")


@dataclass(frozen=True, slots=True)
class Stage:
    """Some nodes of a graph.

    Attributes:
        name: "embed", "visual.blocks.3", "model.layers.0", "head".
        nodes: indices into the graph's nodes.
        inputs: values that come from outside of the stage, graph inputs among them.
        outputs: values that later stages or the caller need.
    """

    name: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def name_stage(node_name: str) -> str:
    """The stage a node belongs to, by its name."""
    if match := _LAYER.match(node_name):
        return f"{match[1].replace('/', '.')}.{match[2]}"
    return LAST if node_name.startswith(_TAIL) else FIRST


def cut_stages(graph: onnx.GraphProto) -> tuple[Stage, ...]:
    """Split a graph's nodes into stages, in the order they run.

    Raises:
        BundleError: a layer needs what a later one makes, or nodes have no names to go by.
    """
    members: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        members.setdefault(name_stage(node.name), []).append(index)
    order = sorted(members, key=lambda name: (name != FIRST, name == LAST, _layer_index(name)))
    constants = {tensor.name for tensor in graph.initializer}
    made_by = {
        value: name
        for name in order
        for i in members[name]
        for value in graph.node[i].output
        if value  # an output that is left out, which has no name
    }
    needed_later: dict[str, set[str]] = {}
    for name in order:
        for i in members[name]:
            for value in graph.node[i].input:
                maker = made_by.get(value)
                if maker is not None and order.index(maker) > order.index(name):
                    raise BundleError(f"node {graph.node[i].name} needs {value} of a later layer")
                if maker is not None and maker != name:
                    needed_later.setdefault(maker, set()).add(value)
    final = {value.name for value in graph.output}
    stages = []
    for name in order:
        inputs: dict[str, None] = {}
        outputs = []
        for i in members[name]:
            node = graph.node[i]
            for value in node.input:
                if value and value not in constants and made_by.get(value) != name:
                    inputs[value] = None
            outputs += [v for v in node.output if v in final or v in needed_later.get(name, ())]
        stages.append(Stage(name, tuple(members[name]), tuple(inputs), tuple(outputs)))
    return tuple(stages)


class Walk:
    """Many inputs on their way through one graph.

    Attributes:
        stages: in the order they run.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        feeds: Sequence[Mapping[str, NDArray]],
        *,
        num_threads: int = 0,
        keep_qdq: bool = False,
        keep_outputs: bool = True,
    ) -> None:
        """Set out with some inputs.

        Args:
            model: the graph; its external data lies in `folder`.
            folder: the bundle.
            feeds: of each input the graph's inputs by name, any[...] as the manifest has them;
                the decoder's empty cache is added.
            num_threads: of one operator; 0: all cores.
            keep_qdq: see `StageOptions`.
            keep_outputs: whether the graph's own outputs stay in `live`; the decoder's logits of
                every position are gigabytes.
        """
        self._model = model
        self._folder = folder
        self._options = StageOptions(folder, num_threads, keep_qdq=keep_qdq)
        self.stages = cut_stages(model.graph)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        outputs = {value.name for value in model.graph.output}
        self._final = set() if keep_outputs else outputs
        self._last_use = {v: i for i, s in enumerate(self.stages) for v in set(s.inputs) - outputs}
        self._inputs = {value.name: value for value in model.graph.input}
        self._live: list[Tensors] = [dict(feed) for feed in feeds]
        # [batch, tokens] of each input, which an empty cache needs when position_ids are gone
        self._sizes = [feed["position_ids"].shape[-2:] for feed in feeds]

    @property
    def live(self) -> Sequence[Tensors]:
        """Of each input, the values that are still needed and the graph's outputs so far."""
        return self._live

    def fork(self) -> Walk:
        """A walk that goes its own way from here with the same inputs."""
        other = copy.copy(self)
        other._live = [dict(live) for live in self._live]
        other._sizes = list(self._sizes)
        return other

    def join(self, other: Walk) -> None:
        """Take along the inputs of a fork at the same stage, behind one's own."""
        self._live += other._live
        self._sizes += other._sizes

    def run_stage(
        self,
        index: int,
        taps: Sequence[str] = (),
        on_taps: OnTaps | None = None,
        change: Change | None = None,
    ) -> None:
        """Take every input through one stage.

        Args:
            index: of the stage; 0 first, then one after another.
            taps: names of values of this stage, its inputs included, to hand to `on_taps`.
            on_taps: called after each input.
            change: what is run instead of the stage as it stands.

        Raises:
            BundleError: onnxruntime refused the stage, or a value is not finite (it is named).
        """
        if not self._live:
            return
        stage = self.stages[index]
        outputs = list(dict.fromkeys([*stage.outputs, *(t for t in taps if t not in stage.inputs)]))
        dropped = {name for name in outputs if name.startswith("present.") or name in self._final}
        outputs = [name for name in outputs if name not in dropped or name in taps]
        if not outputs:
            return  # nothing of this stage is asked for
        session = None
        for number, live in enumerate(self._live):
            feed = {name: self._feed(name, number) for name in stage.inputs}
            if session is None:
                model = self._make_model(stage, feed, outputs)
                session = open_session(change(model) if change else model, self._options)
            try:
                results = session.run(outputs, feed)
            except Exception as error:  # onnxruntime has no base class of its own
                raise BundleError(f"stage {stage.name} failed: {error}") from error
            values = dict(zip(outputs, (np.asarray(result) for result in results), strict=True))
            check_finite(values, stage.name)
            if on_taps is not None:
                on_taps(number, {name: values.get(name, feed.get(name)) for name in taps})  # type: ignore[misc]
            live |= {n: values[n] for n in stage.outputs if n in values and n not in dropped}
            for name in [name for name in live if self._last_use.get(name, index + 1) <= index]:
                del live[name]

    def _feed(self, name: str, number: int) -> NDArray:
        if name in self._live[number]:
            return self._live[number][name]
        if not _PAST.fullmatch(name):
            raise BundleError(f"the graph needs {name}, which was not given")
        batch, length = self._sizes[number]
        value = self._inputs[name].type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.elem_type)
        heads, size = value.shape.dim[1].dim_value, value.shape.dim[3].dim_value
        return np.zeros((batch, heads, length, size), dtype)

    def _make_model(self, stage: Stage, feed: Tensors, outputs: Sequence[str]) -> onnx.ModelProto:
        nodes = [self._model.graph.node[i] for i in stage.nodes]
        used = {value for node in nodes for value in node.input}
        inputs = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in feed.items()
        ]
        graph = onnx.helper.make_graph(
            nodes,
            stage.name,
            inputs,
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [tensor for name, tensor in self._constants.items() if name in used],
        )
        return onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )


@dataclass(frozen=True, slots=True)
class StageOptions:
    """How models in memory are run whose weights lie in a bundle's folder.

    Attributes:
        folder: of the weights.
        num_threads: of one operator; 0: ONNX Runtime's own choice.
        keep_qdq: leave Q/DQ pairs as they are: ONNX Runtime's fusion takes float8 for int8.
    """

    folder: Path
    num_threads: int = 0
    keep_qdq: bool = False

    def __post_init__(self) -> None:
        check_num_threads(self.num_threads or None)


def open_session(model: onnx.ModelProto, asked: StageOptions) -> ort.InferenceSession:
    """A session of a model in memory.

    Raises:
        BundleError: onnxruntime refused it.
    """
    data = model.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = asked.num_threads
    options.log_severity_level = 4
    entries = {
        "session.model_external_initializers_file_folder_path": str(asked.folder.absolute()),
        # Between two runs the threads would spin on cores that numpy needs.
        "session.intra_op.allow_spinning": "0",
        **make_entries(data, keep_qdq=asked.keep_qdq),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no base class of its own
        raise BundleError(f"onnxruntime refused {model.graph.name}: {error}") from error


def check_finite(values: Mapping[str, NDArray], stage: str) -> None:
    """Refuse NaN and infinity, by the name of the value.

    Args:
        values: name -> any[...]; those that are no floats pass.
        stage: for the message.

    Raises:
        BundleError: names value and stage.
    """
    for name, value in values.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise BundleError(f"{name} in {stage} holds NaN or infinite values")


def keep_every_position(model: onnx.ModelProto) -> onnx.ModelProto:
    """The decoder with logits of every position, float32[B * S, V], instead of one a sequence."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    width = next(v for v in changed.graph.input if v.name == "inputs_embeds")
    size = width.type.tensor_type.shape.dim[2].dim_value
    shape = onnx.numpy_helper.from_array(np.array([-1, size], np.int64), "every_position")
    changed.graph.initializer.append(shape)
    for node in changed.graph.node:
        if node.op_type == "GatherND":
            node.op_type = "Reshape"
            node.input[1] = shape.name
            del node.attribute[:]
    return changed


def _layer_index(name: str) -> int:
    return 0 if name in (FIRST, LAST) else int(name.rpartition(".")[2])
