"""A model, a recipe and a board -> tokens, bytes, FLOPs, and whether it fits: `vlmedge plan`."""
