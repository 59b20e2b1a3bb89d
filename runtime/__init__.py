"""Bundle -> answers: the torch-free runtime of vlmedge."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vlmedge")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"
