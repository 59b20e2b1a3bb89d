"""Turn a model into what it makes of an example, and two models into findings.

Read first `reference.py`, the protocol of a model that can be observed, then `observe.py`, which
is that protocol for a bundle, and `findings.py`, the contract between measuring, gates and
reports. `measures.py` has the distances between two arrays, logits or answers; `diff.py` and the
`layer_*` files walk two models layer by layer; `paired_interval.py` and `ratio_interval.py` hold
the statistics.

A new level of comparison is a finding in `findings.py`, measured in `quant/check/levels.py`. The
reference in transformers is `export/verify/reference.py`, found by entry point.
"""
