"""Turn pictures, clips and messages into the arrays that the graphs take.

The way of a request: `messages.py` checks the turns, `images.py` and `video.py` decode to upright
RGB, `resize.py` chooses the size and `patches.py` cuts the patches (Naive Dynamic Resolution),
`prompt.py` renders the chat template and encodes it with `tokens.py`, `positions.py` computes the
M-RoPE ids. Read first `request.py`, which puts them together, then `patches.py`.

Another way of cutting pictures (SigLIP's fixed square, tiles) is a file beside `patches.py`; a
format of picture files that needs its own limits goes to `formats/`. Nothing here runs a graph.
"""
