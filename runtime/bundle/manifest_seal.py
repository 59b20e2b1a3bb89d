"""manifest.json's own checksum: written with it, compared when it is read.

The last key of the file, `checksum`, is the SHA-256 of the file's bytes with its own 64 digits
replaced by zeros. It is over bytes, not over values, so that nothing depends on how a parser reads
or a writer prints a number; docs/bundle.md has a command of two programs that computes it. It finds
damage and edits by hand, not malice: whoever can change a manifest can seal it again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import BundleError

CHECKSUM = "checksum"
_ZEROS = "0" * 64
# Where it must stand: the last key of the outermost object, which ends the file.
_PLACE = re.compile(r'"checksum": ?"([0-9a-f]{64})"\s*\}\s*\Z')


def seal_manifest(raw: Mapping[str, Any]) -> str:
    """A manifest's JSON text, sealed: indented, with a final newline.

    Args:
        raw: the manifest as JSON values; a checksum that it has is replaced.
    """
    content = {key: value for key, value in raw.items() if key != CHECKSUM}
    text = json.dumps(content | {CHECKSUM: _ZEROS}, indent=1, ensure_ascii=False) + "\n"
    return _put(text, _hash(text))


def check_seal(text: str, where: str) -> None:
    """Compare a manifest's checksum with its text.

    Raises:
        BundleError: there is none, or it is another text's.
    """
    found = _PLACE.search(text)
    if found is None:
        raise BundleError(
            f"{where} does not end with its checksum: it is damaged, or was edited or formatted "
            f"by hand; {_ADVICE}"
        )
    made = _hash(_put(text, _ZEROS))
    if made != found[1]:
        raise BundleError(
            f"{where} is damaged or was edited by hand: its checksum is {found[1][:12]}..., its "
            f"text has {made[:12]}...; {_ADVICE}"
        )


_ADVICE = (
    "copy or export the bundle again, or, after an edit of your own, seal it with "
    "`vlmedge inspect BUNDLE --seal`"
)


def _put(text: str, checksum: str) -> str:
    found = _PLACE.search(text)
    assert found is not None
    return text[: found.start(1)] + checksum + text[found.end(1) :]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
