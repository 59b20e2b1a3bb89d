"""Render a checkpoint's chat template within limits, whatever the template does.

A template is a program of unknown origin. `render.py`, to be read first, compiles and runs it in
Jinja's sandbox; `metering.py` puts a meter at every loop, call, filter and operation; `budget.py`
holds how much time, memory and text one rendering may cost.

A new operation of templates that could become expensive is metered in `metering.py`. What a
template is given, and how user text is kept apart from control tokens, is said in
`runtime/inputs/prompt.py`.
"""
