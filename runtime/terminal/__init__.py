"""Show a person results, progress, errors and the end of a command.

Read first `console.py` (tables and lines on stdout, notices and progress on stderr), then
`interruption.py` (ctrl-C, a kill, a closed terminal) and `standard_streams.py` (streams that are
closed, full or without a reader). `tables.py` and `line_breaks.py` lay text out for a width,
`printable.py` makes text of unknown origin safe to show.

A new file goes here if every command could use it. What one command shows goes to the room of that
command. This room imports no other; rich and typer are loaded only by commands.
"""
