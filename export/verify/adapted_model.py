"""Load the reference model of a checkpoint with adapters, merged by peft itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.adapters.config import CONFIG_NAME
from ..checkpoint.adapters.merge import choose_base


def load_model(folder: Path, adapters: Sequence[Path], load: Callable[[Path], Any]) -> Any:
    """A model with adapters merged in order.

    Args:
        folder: of the base. An adapter beside it counts only where `adapters` names it.
        adapters: folders of peft's.
        load: transformers' way from a folder to a model.

    Raises:
        ValueError: peft isn't installed.
    """
    merge = _import_merge() if adapters else None
    with tempfile.TemporaryDirectory(prefix="vlmedge-") as bare:
        if (folder / CONFIG_NAME).exists():
            # transformers would load the adapter too, wherever peft is installed.
            for path in folder.iterdir():
                if not path.name.startswith("adapter_"):
                    (Path(bare) / path.name).symlink_to(path.resolve())
            folder = Path(bare)
        model = load(folder)
    if merge is not None:
        for adapter in adapters:
            model = merge(model, adapter)
    return model


def check_peft(checkpoint: str | Path, adapters: Sequence[Path] | None) -> None:
    """Fail before the long work where adapters are to be merged and peft isn't installed.

    Raises:
        ValueError: peft is missing, or the adapters are refused as in `choose_base`.
    """
    if choose_base(checkpoint, adapters)[1]:
        _import_merge()


def _import_merge() -> Callable[[Any, Path], Any]:
    try:
        from peft import PeftModel  # type: ignore[import-not-found]  # optional
    except ImportError as error:
        raise ValueError(
            "the reference merges adapters with peft, which isn't installed: pip install peft"
        ) from error

    def merge(model: Any, adapter: Path) -> Any:
        merged: Any = PeftModel.from_pretrained(model, str(adapter))
        return merged.merge_and_unload()

    return merge
