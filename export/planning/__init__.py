"""Say what a model takes on a board, and whether it fits: `vlmedge plan`.

Read first `planner.py` (a request and a setup into the plan) and `plan.py`, the frozen objects
between the parts. `work.py` counts FLOPs and bytes, `weight_bytes.py` stored tensors, `memory.py`
what a board must hold, `roofline.py` turns work into seconds, `devices.py` has the boards with the
source of each number, `fit.py` and `advice.py` say what would fit.

A new board is an entry of `devices.py`. Weights are never read: sizes come from headers.
"""
