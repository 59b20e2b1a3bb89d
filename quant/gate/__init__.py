"""Decide from findings and a gate whether a bundle passes, fails, or stays undecided.

Read first `gate.py` (gate.toml), `metrics.py` (the numbers that a gate may limit) and `limits.py`
(one limit against its measurement and interval). `verdict.py` puts the limits together,
`statistics.py` the scores of tasks, `unusual.py` names layers whose error is unusual for their
precision, `blame.py` those that a failed limit goes back to, `range_limit.py` values over float16's
range.

A new metric is a row in `metrics.py` and a line in docs/check.md. Nothing here measures: findings
come from `quant/check/`.
"""
