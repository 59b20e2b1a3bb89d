"""Quantize and check many bundles in processes of their own, and put them in one table.

Read first `plan.py` (SWEEP.toml), then `schedule.py` (the units of work and who needs which) and
`units.py` (units in processes that may die on the way). `worker.py` is what one process does: JSON
in, JSON out. `process_pool.py` and `ray_pool.py` are the places where units run; `merge.py` puts
checks of shards together; `table.py` is the result.

Another kind of cluster is a pool beside `ray_pool.py`.
"""
