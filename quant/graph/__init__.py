"""Find the linear layers of a graph, and cut a graph into stages.

Read first `linears.py` (the layers of a float graph, by the names of the checkpoint's),
`layer_nodes.py` (the nodes that stand for them in a bundle of any precision) and `stages.py` (a
graph cut between its layers). `feeds.py` makes the graphs' inputs of examples, `folding.py` says
where the scale of a layer's input can be folded to, `files.py` reads a bundle's graph and where its
weights lie.

A new question about a graph goes here, if it needs no recipe. What changes a graph is in
`quant/quantize/`.
"""
