"""Search the recipe that gives few layers back to a higher precision and passes a gate.

Read first `search_recipe.py`, one run of `quantize --auto`, then `ladders.py` (every layer in each
format up to float, quantized once), `moves.py` (what may be given back, the most worthwhile first)
and `search_moves.py` (few of them with which a test passes). `gates.py` is the test, `cost.py` the
price of a layer, `bundle.py` a bundle of one choice.

Who owns what is drawn in docs/architecture.md. Another price is a function in `cost.py`.
"""
