"""Open a checkpoint folder or hub id: its ModelSpec and its tensors, all there and well shaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...quant.files.source_stamp import SourceStamp, stamp_files
from ...runtime.files.path_kind import HUB_ID, explain_no_checkpoint
from ...runtime.files.regular_file import read_regular
from .adapters.config import CONFIG_NAME
from .adapters.merge import ADAPTER_FILES, apply_adapter, choose_base
from .config import ModelSpec, find_model_spec
from .files.json_file import read_json
from .lm_head import settle_head
from .packed.config import OLDER_FILES, read_quantization
from .packed.layers import find_packed
from .packed.matrix import PackedMatrix
from .shapes import expected_shapes, find_problems
from .weights.files import find_weight_files
from .weights.tensor_source import TensorSource
from .weights.tensors import INDEX_NAME, read_tensors

# All that config.py and processor.py read, where it is there
SMALL_FILES = (
    INDEX_NAME,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    *OLDER_FILES,
)
# Everything a bundle is made of; the shards are picked by their suffix.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.json"]


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
    # Layers that a quantizer has packed, by name ("model.layers.0.mlp.up_proj"); `tensors` lacks
    # their weights, and holds their biases
    packed: Mapping[str, PackedMatrix] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()  # what a user should know, a line each
    adapters: tuple[Path, ...] = ()  # that are merged, in order


def open_checkpoint(checkpoint: str | Path, adapters: Sequence[Path] | None = None) -> Checkpoint:
    """Find, read and check a checkpoint; of tensors, only zero points and input orders are read.

    Args:
        checkpoint: a directory, or a hub id such as "Qwen/Qwen2-VL-2B-Instruct"; or the directory
            of a LoRA adapter that names its base.
        adapters: directories of LoRA adapters, merged in this order; (): none, though one may lie
            beside the model; None: none, and one beside the model is refused.

    Raises:
        ValueError: no such checkpoint, an unsupported one, or tensors that don't fit its config.
    """
    checkpoint, folder, chosen = find_base(checkpoint, adapters)
    stamp = stamp_files(folder / name for name in SMALL_FILES)
    found = find_model_spec(folder)
    spec = found.value
    files = find_weight_files(folder)
    stamp |= stamp_files(folder / name for name in files)
    quantization = read_quantization(folder, read_json(folder / "config.json"))
    packed, tensors = find_packed(quantization, read_tensors(folder, files))
    remarks: tuple[str, ...] = ()
    if "lm_head" not in packed:
        spec, tensors, remarks = settle_head(spec, tensors)
    if packed and chosen:
        raise ValueError(
            f"the layers of {folder} are packed, no adapter can be merged into them: merge it into "
            "the float checkpoint"
        )
    for adapter in chosen:
        stamp |= stamp_files(adapter / file_name for file_name in ADAPTER_FILES)
        spec, tensors = apply_adapter(adapter, spec, tensors)
        remarks += _compare_small_files(folder, adapter)
    problems = list(find_problems(expected_shapes(spec), tensors, packed))
    if problems:
        raise ValueError(
            f"the tensors of {folder} don't fit its config.json: {'; '.join(problems)}"
        )
    name = folder.resolve().name if Path(checkpoint).is_dir() else str(checkpoint)
    name = " + ".join([name, *(adapter.resolve().name for adapter in chosen)])
    return Checkpoint(
        name,
        folder,
        spec,
        tensors,
        {file_name: folder / file_name for file_name in ("config.json", *files)}
        | {
            f"adapter-{number}/{file_name}": adapter / file_name
            for number, adapter in enumerate(chosen, start=1)
            for file_name in ADAPTER_FILES
        },
        stamp,
        packed,
        (*found.unusual, *remarks, *(quantization.remarks if quantization else ())),
        chosen,
    )


def _compare_small_files(folder: Path, adapter: Path) -> tuple[str, ...]:
    """A remark for each file that the adapter's folder has otherwise: the base's is used."""

    def is_equal(name: str) -> bool:
        mine, base = adapter / name, folder / name
        return base.is_file() and read_regular(mine) == read_regular(base)

    names = [n for n in SMALL_FILES if n not in ("config.json", CONFIG_NAME)]
    return tuple(
        f"{name} of adapter {adapter.name} differs from the base's, which is used: copy it into "
        "the base's folder if it is meant"
        for name in names
        if (adapter / name).is_file() and not is_equal(name)
    )


def find_base(
    checkpoint: str | Path, adapters: Sequence[Path] | None
) -> tuple[str | Path, Path, tuple[Path, ...]]:
    """The base as it is called, its folder, and the adapters on it, as in `open_checkpoint`.

    Raises:
        ValueError: as `choose_base` and `find_folder`.
    """
    base, chosen = choose_base(checkpoint, adapters)
    folder = find_folder(base)
    if folder != Path(base) and (folder / CONFIG_NAME).is_file():  # an adapter from the hub
        found, chosen = choose_base(folder, adapters)
        if found != folder:
            base, folder = found, find_folder(found)
    return base, folder, chosen


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
