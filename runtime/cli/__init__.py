"""The program `vlmedge`, and its commands `run`, `inspect` and `bench`.

`start.py` is the program's entry: ready for ctrl-C before anything large is loaded. `main.py`
finds the installed commands, loads the one that is called, and turns an error into one line and an
exit code. Read first `commands.py`, the three commands of the runtime; `question.py` makes messages
of their arguments, `bench.py` measures.

The other layers keep their own commands (`quant/cli/`, `export/cli.py`); a command is an entry
point of the group `vlmedge.commands`. This room may import every room of the runtime.
"""
