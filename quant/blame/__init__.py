"""Find the layers that make a check fail.

Read first `levels.py`, which goes through the halves of the model that fail, then `walk.py`, which
gives layers of a bundle back to the float model's values and looks at what it then makes of
pictures and known answers. The search itself, on numbers alone, is `quant/gate/blame.py`.

A new way of giving a layer back goes to `walk.py`.
"""
