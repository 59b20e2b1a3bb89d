"""Compare a bundle with transformers, or be the transformers side of a comparison.

Read first `verify.py` (`export --verify`: settings, image embeddings, logits, greedy tokens) and
`reference.py` (transformers on a checkpoint, behind the protocol of `quant/compare/reference.py`).
`prompts.py` and `settings.py` take everything from transformers' own loading of the folder, so that
a wrong reading of ours shows. `tolerance.py` says how far a bundle may be off. `selfcheck.py`
(`export --selfcheck`) runs every graph once and needs no torch.

The only room of `export/` that loads torch and transformers.
"""
