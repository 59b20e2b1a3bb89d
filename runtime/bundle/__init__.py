"""Read a bundle, the folder that crosses from the exporter to the device.

Read first `manifest.py`, the frozen contract between exporter and runtime, then `embeddings.py`,
which maps the token embeddings into memory and reads them row by row. `manifest_file.py` reads and
writes the manifest's JSON, `manifest_checks.py` has the rules that types cannot express. Beside
them: the seal and the hashes of files (`manifest_seal.py`, `hash_check.py`, `guard.py`), the
defaults of generation, and `inspection.py`, which says what a bundle holds.

A new entry of the manifest is a field in `manifest.py`, with its rule in `manifest_checks.py` and
its line in docs/bundle.md. Imports only `runtime/files/` and the errors.
"""
