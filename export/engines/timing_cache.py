"""Kernels that TensorRT has measured, kept in a file from build to build.

Measuring is most of a build's time on a device, and the next build of the same shapes need not
do it again. tensorrt_rtx measures nothing and has none.
"""

from __future__ import annotations

from pathlib import Path

from ...quant.files.atomic import replaced_file
from ...runtime.backends.trt.engine_set import ENGINES_FOLDER, Gpu
from ...runtime.files.regular_file import read_regular
from .adapter import TensorRt
from .settings import BuildSettings


class TimingCache:
    """The file, and what was read from it or measured since.

    Attributes:
        content: for the next build; None: TensorRT has no such thing.
    """

    def __init__(self, bundle: Path, settings: BuildSettings, tensorrt: TensorRt, gpu: Gpu) -> None:
        """Read the file that was asked for, or else the bundle's own, if it is there.

        Raises:
            ValueError: one was asked for, and this TensorRT has none, or its folder is missing.
            OSError: it can't be read.
        """
        self.content: bytes | None = None
        self._path = settings.timing_cache
        if tensorrt.builder == "tensorrt_rtx":
            if self._path is not None:
                raise ValueError("tensorrt_rtx measures no kernels: leave out --timing-cache")
            return
        if self._path is not None:  # else this would be found out when an engine has been built
            parent = self._path.absolute().parent
            if not parent.is_dir():
                raise ValueError(f"--timing-cache: {parent} is no directory: make it first")
            if self._path.exists() and not self._path.is_file():
                raise ValueError(f"--timing-cache: {self._path} is no file: name another one")
        else:
            name = f"sm{gpu.sm.replace('.', '')}-{tensorrt.builder}{tensorrt.version}.timing"
            self._path = bundle / ENGINES_FOLDER / name
        self.content = read_regular(self._path) if self._path.exists() else b""

    def keep(self, content: bytes | None) -> None:
        """Write what a build measured, at once: a later one may fail."""
        if content is None or self._path is None or content == self.content:
            return
        self.content = content
        with replaced_file(self._path) as temporary:
            temporary.write_bytes(content)
