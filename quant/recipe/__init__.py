"""Read a TOML recipe into the frozen object by which a bundle is quantized.

Read first `recipe.py`: the formats, which layers they are for, how ranges are found, and what does
not go together; then `toml.py`, which reads a file and writes one. `preset_names.py` lists the
recipes that come with the package without reading them; the recipes themselves are in `presets/`.

A new setting is a field of the recipe with its check and its line in docs/quantization.md; a new
preset is a file in `presets/`. Imports only the names of formats in `quant/rounding/`.
"""
