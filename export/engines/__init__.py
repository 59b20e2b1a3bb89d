"""Build TensorRT engines from a bundle's graphs: `vlmedge build`.

Read first `build.py` (a set of engines for one GPU and one TensorRT), then `settings.py` (what was
asked for), `profiles.py` (the shapes engines are built for) and `steps.py` (which engines, in which
order). `adapter.py` is one engine by the TensorRT at hand, `engine_folder.py` puts a set in place
whole, `split.py` cuts the decoder for boards that cannot build it in one piece.

`script/` writes a shell script that builds the same engines where only trtexec is. A new option of
the builder is a field of `settings.py`, honoured in `adapter.py` and in `script/options.py`.
"""
