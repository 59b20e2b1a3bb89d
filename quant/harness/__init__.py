"""Serve a bundle to evaluation harnesses of others.

Read first `requests.py`, which turns what harnesses hand over into messages and options of the
runtime. `lmms_eval_adapter.py` and `vlmevalkit_adapter.py` are each one harness's idea of a model;
they are loaded by that harness and import it.

Another harness is an adapter beside them. The answers are the runtime's own, as `vlmedge run` gives
them.
"""
