"""Read a JSON file of a checkpoint, and remember where each setting came from.

`json_file.py` reads a file strictly: an object, of a sane size, with no key twice. `origin.py` is
the place of a setting: the file and key, or a default of the model's class.

Both are used by every reader in `export/checkpoint/`; a new one goes here only if it knows no
particular file.
"""
