"""Turn a prompt and the logits of each step into tokens and text.

`encode.py` runs the ViT over a request's pictures and joins its visual tokens with the prompt. Read
first `generate.py` (prefill, then one decoder call a step for the whole batch), then
`processors.py` and `sampling.py`, which choose the next token by the rules of transformers'
generate(), and `writer.py` with `stopping.py`, which end an answer and release its text when it is
certain. `suffix_matches.py` serves the n-gram rules.

A new setting of generation is a processor in `processors.py` and a field of
`runtime/options.py`. Imports the protocol of the backends, never one of them.
"""
