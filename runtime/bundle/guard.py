"""Notice by `stat` whether a bundle's files are still those that were opened.

A model opens its graphs when they are first needed, and with residency "one" again and again, while
the embedding table stays mapped. A bundle that is replaced in between would answer with the old
table and new graphs. So every file is stamped where the bundle is opened, and compared around each
later opening.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ..errors import BundleError
from ..files.file_stamp import read_stamp
from .manifest import MANIFEST_NAME, Manifest
from .manifest_file import read_manifest

# "replaced": another file has the name, or none; what was opened is still there, out of sight.
# "overwritten": the same file has other bytes, and what is mapped into memory has changed with it.
GuardState = Literal["same", "replaced", "overwritten"]
ADVICE = "load it again"


def read_guarded(folder: Path) -> tuple[Manifest, BundleGuard]:
    """A bundle's checked manifest, and the guard of all its files.

    Raises:
        BundleError: as of `read_manifest`, or the bundle was replaced in between.
    """
    first = BundleGuard(folder, (MANIFEST_NAME,))
    manifest = read_manifest(folder)
    guard = BundleGuard(folder, (MANIFEST_NAME, *manifest.files))
    first.check_same()  # the stamps are of files that this manifest speaks of
    return manifest, guard


class BundleGuard:
    """The stamps of a bundle's files at the moment it was opened."""

    def __init__(self, folder: Path, names: Iterable[str], what: str = "bundle") -> None:
        """Stamp the files.

        Args:
            folder: of the bundle.
            names: of its files, the manifest's own included.
            what: what messages call the folder.
        """
        self._folder = folder
        self._what = what
        self.stamps = {name: read_stamp(folder / name) for name in names}  # None: no such file

    def find_change(self) -> tuple[GuardState, str]:
        """What has become of the files: the worst state, and the name of a file in it."""
        worst: tuple[GuardState, str] = ("same", "")
        for name, stamp in self.stamps.items():
            now = read_stamp(self._folder / name)
            if now == stamp:
                continue
            if stamp is not None and now is not None and stamp.is_same_file(now):
                return "overwritten", name
            worst = ("replaced", name)
        return worst

    def check_same(self) -> None:
        """Refuse to open anything more of a bundle that has changed.

        Raises:
            BundleError: it was replaced or overwritten.
        """
        state, name = self.find_change()
        if state != "same":
            raise BundleError(
                f"the {self._what} at {self._folder} was replaced since it was loaded ({name} is "
                f"another): {ADVICE}"
            )

    def check_intact(self) -> None:
        """Refuse to go on where what is mapped into memory has changed.

        Raises:
            BundleError: a file was overwritten in place.
        """
        state, name = self.find_change()
        if state == "overwritten":
            raise BundleError(
                f"{self._folder / name} was written to since it was loaded: {ADVICE}, and put new "
                "bundles in place by renaming, as vlmedge does"
            )

    @property
    def notices(self) -> tuple[str, ...]:
        """One line where the bundle was replaced as a whole: answers still are the old one's."""
        state, _ = self.find_change()
        if state != "replaced":
            return ()
        return (
            f"the {self._what} at {self._folder} was replaced since it was loaded, answers are "
            f"still the old one's: {ADVICE}",
        )
