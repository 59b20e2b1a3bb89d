"""Read files and JSON that somebody else may have written.

Read first `strict.py`, which turns parsed JSON or TOML into frozen dataclasses and reports what
does not fit with its place, and `regular_file.py`, which opens a named file only if it is a regular
one. The others are single questions about a file: what lies at a path, whether its text is plain,
whether it is still the same file.

A new file goes here if it reads or judges files and knows nothing of bundles or checkpoints.
This is the lowest room: it imports no other.
"""
