"""A bundle of flavor tensorrt -> an engine set whose engines are ONNX files with their weights."""

import hashlib

import onnx

from vlmedge.export.engines.profiles import derive_extents, shape_profiles
from vlmedge.export.engines.settings import BuildSettings
from vlmedge.export.engines.split import split_decoder
from vlmedge.runtime.backends.trt import engine_set as sets
from vlmedge.runtime.bundle.manifest import TensorSpec
from vlmedge.runtime.bundle.manifest_file import read_manifest

DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.UINT8: "uint8",
}


def build(bundle, settings=None, *, cuts=(), gpu=None, key="fake"):
    """Write BUNDLE/engines/KEY.

    Args:
        bundle: the folder.
        settings: None: the defaults.
        cuts: where the decoder is split, as parts of its nodes from 0 to 1.
        gpu: that it is for.
        key: the folder's name.
    """
    settings = settings or BuildSettings()
    manifest = read_manifest(bundle)
    extents = derive_extents(manifest, settings)
    folder = bundle / sets.ENGINES_FOLDER / key
    folder.mkdir(parents=True)
    chains = {}
    for graph, profiles in extents.items():
        spec = manifest.graphs[graph]
        model = onnx.load(bundle / spec.file)
        if graph == "decoder" and (settings.split > 1 or settings.separate_lm_head):
            parts = [
                (part.model, part.inputs, part.outputs, part.inputs)
                for part in split_decoder(
                    model, spec, settings.split, separate_lm_head=settings.separate_lm_head
                )
            ]
        else:
            parts = describe(split(model, cuts if graph == "decoder" else ()), spec)
        records = []
        for index, (part, inputs, outputs, limited) in enumerate(parts):
            data = part.SerializeToString()
            file = f"{graph}.{index}.engine"
            (folder / file).write_bytes(data)
            records.append(
                sets.EngineRecord(
                    f"{graph}.{index}",
                    file,
                    len(data),
                    hashlib.sha256(data).hexdigest(),
                    inputs,
                    outputs,
                    shape_profiles(limited, profiles),
                )
            )
        chains[graph] = tuple(records)
    engine_set = sets.EngineSet(
        schema_version=sets.SCHEMA_VERSION,
        created_by="vlmedge test",
        builder="tensorrt",
        version="10.3.0",
        gpu=gpu or sets.Gpu("Fake", "8.7"),
        dtype=manifest.target.dtype,
        command=f"vlmedge build {bundle.name}",
        settings=settings.to_record(),
        graph_sha256={
            graph: manifest.files[manifest.graphs[graph].file].sha256 for graph in chains
        },
        chains=chains,
        weights_sha256=sets.record_weights(manifest),
    )
    (folder / sets.ENGINE_SET_NAME).write_text(sets.to_json(engine_set))
    return folder


def split(model, cuts):
    """Consecutive graphs that together are one, cut behind some of its nodes.

    Integers are shapes, which no engine takes: each part computes its own again.
    """
    nodes = list(model.graph.node)
    ends = [int(len(nodes) * cut) for cut in cuts] + [len(nodes)]
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {v.name: v for v in (*inferred.graph.value_info, *model.graph.input)}
    values |= {value.name: value for value in model.graph.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    outputs = [value.name for value in model.graph.output]
    parts, start = [], 0
    for end in ends:
        some = complete(set(range(start, end)), nodes, makers, values)
        later = complete(set(range(end, len(nodes))), nodes, makers, values)
        made = [name for index in sorted(some) for name in nodes[index].output]
        read = {name: None for index in sorted(some) for name in nodes[index].input if name}
        wanted = {name for index in later for name in nodes[index].input}
        wanted = {n for n in wanted if n in values and not is_shape(values[n])} | set(outputs)
        new = [name for name in made if start <= makers[name] < end and name in wanted]
        graph = onnx.helper.make_graph(
            [nodes[index] for index in sorted(some)],
            f"part{len(parts)}",
            [values[name] for name in read if name not in made and name not in weights],
            [values[name] for name in new],
            [weights[name] for name in read if name in weights],
        )
        part = onnx.helper.make_model(graph, opset_imports=model.opset_import)
        part.ir_version = model.ir_version
        parts.append(part)
        start = end
    return parts


def complete(some, nodes, makers, values):
    """Nodes, and those that make the shapes they need."""
    todo, done = set(some), set()
    while todo:
        index = todo.pop()
        done.add(index)
        for name in nodes[index].input:
            if name in makers and (name not in values or is_shape(values[name])):
                todo |= {makers[name]} - done
    return done


def is_shape(value):
    return value.type.tensor_type.elem_type == onnx.TensorProto.INT64


def describe(models, spec):
    """Each part with its inputs, its outputs, and those inputs that profiles limit.

    What goes between parts cut anywhere has sizes without a name: profiles take any.
    """
    specs = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    for model in models:
        inputs = tuple(make_spec(value, specs) for value in model.graph.input)
        outputs = tuple(make_spec(value, specs) for value in model.graph.output)
        yield model, inputs, outputs, [tensor for tensor in inputs if tensor.name in specs]


def make_spec(value, specs):
    """As the manifest has it, or of a value that goes between two parts."""
    if value.name in specs:
        return specs[value.name]
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(value.name, DTYPES[tensor.elem_type], shape)
