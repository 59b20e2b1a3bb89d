"""Turn findings and a verdict into HTML, JSON, JUnit XML and plots.

Read first `folder.py`, the files of a report, then `page.py` with `page.css` and its template,
and `sections.py`, the words and numbers. `result_json.py` is report.json, read by sweeps and other
programs; `junit.py` is for CI servers. Plots are SVG of our own: `svg.py` has the parts, `plots.py`
and `heat_map.py` the drawings.

A new section is a function beside those in `sections.py`, or a file where it has a subject of its
own (`levels.py`, `layers.py`, `ranges.py`, `examples.py`).
"""
