"""Refuse picture files that are legal but absurd, before anything is decoded.

Each file reads the markers of one format: how many scans a JPEG has (`jpeg_scans.py`, read it
first), how many parts a TIFF or a JPEG 2000 has, how long the header of a PPM is. They see only
the first bytes and raise an `ImageError` that says what was found and where the limit is.

Limits for another format are a new file here, called by `runtime/inputs/images.py`.
"""
