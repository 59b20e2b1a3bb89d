"""Write files and bundles so that they are there whole or not at all.

Read first `staged_folder.py` (a folder under a temporary name, then renamed), `atomic.py` (the same
for one file), `hashed_file.py` (hashed and flushed while it is written) and `bundle_target.py`
(what a new bundle may take the place of). Locks, stamps of sources and the names in errors of
writing are files of their own.

A new file goes here if it writes or protects files and knows no graph. The exporter, the lowering
and the quantizer all write through this room. Imports only the runtime.
"""
