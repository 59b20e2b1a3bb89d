"""Run a bundle and its reference on the same examples and collect all findings.

Read first `run.py`, the order of a check, then `plan.py`, which says whether the two sides, the
data and the gate go together before anything is loaded, and `levels.py`, which turns one example
as both sides saw it into findings. `speed.py` times both side by side, `value_range.py` looks for
values that float16 cannot hold, `terminal.py` is the check as a person reads it.

A new level of the check is a function in `levels.py` and its place in `run.py`. Verdicts are made
in `quant/gate/`, files in `quant/report/`.
"""
