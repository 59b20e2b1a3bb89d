"""The commands `quantize`, `check`, `diff`, `sensitivity` and `sweep`.

Each file is one command: its options, and a call into the room that does the work. Read first
`quantize.py` and `check.py`. `options.py` has the options that several commands share,
`exit_code.py` says what 0, 1 and 2 mean for a command that judges, `kept_work.py` what an
interrupted run leaves.

A new command is a file here and an entry point of the group `vlmedge.commands` in pyproject.toml.
Only this room may import every room of `quant/`.
"""
