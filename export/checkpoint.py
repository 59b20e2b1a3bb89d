"""A checkpoint folder or hub id -> ModelSpec and the tensors, all there and rightly shaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..quant.source_stamp import SourceStamp, stamp_files
from ..runtime.path_kind import HUB_ID, explain_no_checkpoint
from .config import ModelSpec, read_json, read_model_spec
from .safetensors_header import TensorSource, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# All that config.py and processor.py read, where it is there
SMALL_FILES = (
    INDEX_NAME,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
FLOAT_DTYPES = ("F32", "F16", "BF16")
# Everything a bundle is made of; the shards are picked by their suffix.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.json"]
# Names that transformers 5 keeps in memory, and some tools save, -> the hub's.
_RENAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))
# Saved by some tools though they are computed, or a tied copy: never read.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq|.*rotary_pos_emb\.inv_freq")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint."""

    name: str  # hub id or folder name
    folder: Path
    spec: ModelSpec
    tensors: Mapping[str, TensorSource]  # by the hub's name

    source_files: Mapping[
        str, Path
    ]  # config.json and the weight files, by their names in the folder
    stamp: SourceStamp  # of everything that is read, the small files as well


def open_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Find, read and check a checkpoint; only headers are read.

    Args:
        checkpoint: a directory, or a hub id such as "Qwen/Qwen2-VL-2B-Instruct".

    Raises:
        ValueError: no such checkpoint, an unsupported one, or tensors that don't fit its config.
    """
    folder = find_folder(checkpoint)
    stamp = stamp_files(folder / name for name in SMALL_FILES)
    spec = read_model_spec(folder)
    files = find_weight_files(folder)
    stamp |= stamp_files(folder / name for name in files)
    tensors = read_tensors(folder, files)
    problems = list(_find_problems(expected_shapes(spec), tensors))
    if problems:
        raise ValueError(
            f"the tensors of {folder} don't fit its config.json: {'; '.join(problems)}"
        )
    name = folder.resolve().name if Path(checkpoint).is_dir() else str(checkpoint)
    return Checkpoint(
        name,
        folder,
        spec,
        tensors,
        {file_name: folder / file_name for file_name in ("config.json", *files)},
        stamp,
    )


def find_folder(checkpoint: str | Path) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded, or found in the hub's cache."""
    folder = Path(checkpoint)
    if problem := explain_no_checkpoint(folder):
        raise ValueError(problem)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(str(checkpoint)):
        raise ValueError(f"{checkpoint} is neither a directory nor a hub id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"no directory {checkpoint}; for a hub id, pip install vlmedge[export]"
        ) from error
    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub client has many, of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"no directory {checkpoint}, and as a hub id it could not be fetched: {reason}"
        ) from error


def find_weight_files(folder: Path) -> dict[str, set[str] | None]:
    """The safetensors files of a folder, and which tensors an index says are in each.

    Raises:
        ValueError: no weights, or a malformed index.
    """
    index_path = folder / INDEX_NAME
    if index_path.exists():
        return {**_read_index(index_path)}
    if (folder / SINGLE_NAME).exists():
        return {SINGLE_NAME: None}
    hint = " (PyTorch .bin files are not read)" if any(folder.glob("*.bin")) else ""
    raise ValueError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}{hint}")


def read_tensors(folder: Path, files: Mapping[str, set[str] | None]) -> dict[str, TensorSource]:
    """The tensors of all files under the hub's names.

    Raises:
        ValueError: a damaged file, an index that doesn't fit it, or one name twice.
    """
    tensors: dict[str, TensorSource] = {}
    for file_name, listed in files.items():
        header = read_header(folder / file_name)
        if listed is not None and (wrong := listed ^ set(header)):
            raise ValueError(
                f"{folder / INDEX_NAME} and {file_name} disagree about: {_few(sorted(wrong))}"
            )
        for name, tensor in header.items():
            hub_name = _hub_name(name)
            if hub_name in tensors:
                raise ValueError(f"{folder}: tensor {name!r} is there twice")
            if not _IGNORED.fullmatch(hub_name):
                tensors[hub_name] = tensor
    return tensors


def _read_index(path: Path) -> dict[str, set[str]]:
    """Shard name -> the tensors the index places in it."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} has no weight_map")
    files: dict[str, set[str]] = {}
    for tensor, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ValueError(f"{path}: {tensor!r} is in {file_name!r}, which is no plain file name")
        files.setdefault(file_name, set()).add(tensor)
    return dict(sorted(files.items()))


def _hub_name(name: str) -> str:
    for prefix, hub_prefix in _RENAMES:
        if name.startswith(prefix):
            return hub_prefix + name.removeprefix(prefix)
    return name


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this config must have, by the hub's name."""
    vision, decoder = spec.vision, spec.decoder
    dim, mlp, merged, hidden = (
        vision.embed_dim,
        spec.vision_mlp_size,
        spec.merged_size,
        decoder.hidden_size,
    )
    patch = (3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (dim, *patch)}

    def linear(name: str, out: int, size: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, size)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    for i in range(vision.depth):
        block = f"visual.blocks.{i}"
        layer_norm(f"{block}.norm1")
        layer_norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * dim, dim)
        linear(f"{block}.attn.proj", dim, dim)
        linear(f"{block}.mlp.fc1", mlp, dim)
        linear(f"{block}.mlp.fc2", dim, mlp)
    layer_norm("visual.merger.ln_q")
    linear("visual.merger.mlp.0", merged, merged)
    linear("visual.merger.mlp.2", hidden, merged)

    shapes["model.embed_tokens.weight"] = (decoder.vocab_size, hidden)
    kv_size = decoder.num_kv_heads * decoder.head_dim
    for i in range(decoder.num_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        linear(f"{layer}.self_attn.q_proj", hidden, hidden)
        linear(f"{layer}.self_attn.k_proj", kv_size, hidden)
        linear(f"{layer}.self_attn.v_proj", kv_size, hidden)
        linear(f"{layer}.self_attn.o_proj", hidden, hidden, bias=False)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        linear(f"{layer}.mlp.gate_proj", spec.decoder_mlp_size, hidden, bias=False)
        linear(f"{layer}.mlp.up_proj", spec.decoder_mlp_size, hidden, bias=False)
        linear(f"{layer}.mlp.down_proj", hidden, spec.decoder_mlp_size, bias=False)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied_lm_head:
        shapes["lm_head.weight"] = (decoder.vocab_size, hidden)
    return shapes


def _find_problems(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorSource]
) -> Iterable[str]:
    if missing := [name for name in expected if name not in tensors]:
        yield f"missing {_few(missing)}"
    # A tied head may be saved beside the embeddings it equals; the embeddings are used.
    extra = [name for name in tensors if name not in expected and name != "lm_head.weight"]
    if extra:
        yield f"not part of the model {_few(extra)}"
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            yield f"{name} is {list(tensor.shape)}, the config needs {list(shape)}"
        if tensor is not None and tensor.dtype not in FLOAT_DTYPES:
            yield f"{name} is {tensor.dtype}, needed one of {', '.join(FLOAT_DTYPES)}"


def _few(names: list[str]) -> str:
    """Up to 20 names, and how many more: an error is read by a person."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{len(names)} tensors: {', '.join(names[:20])}{more}"
