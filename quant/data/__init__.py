"""Turn what `--data` names into checked examples, and answers into scores.

Read first `open_data.py`, which recognizes the source, `examples.py`, the one shape that all
sources give, and `task_metrics.py`, which scores an answer as its benchmark does (ANLS, VQA
accuracy, relaxed accuracy, CER). `layouts.py` says what each column of a benchmark means; one file
a source reads it (`jsonl.py`, `folder.py`, `parquet.py`, `mvbench.py`, `easy_vqa.py`).

A new benchmark is a row in `layouts.py`; a new kind of file is a reader beside `jsonl.py`; a new
metric goes to `task_metrics.py`. Imports only `quant/files/` and the runtime.
"""
