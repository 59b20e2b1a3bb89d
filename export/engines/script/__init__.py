"""Write a shell script that builds a bundle's engines on a device without vlmedge.

Read first `write.py`, the script, then `parts.py` (which engines, of which files) and `options.py`
(the options of trtexec that its version knows). `body.sh` is the part of the script that is always
the same; `builder.py` builds through TensorRT's Python module where trtexec is missing;
`archive.py` packs bundle and script into one tar.

Imports the files of `export/engines/`, except its command.
"""
