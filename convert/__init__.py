"""Converters: one module for each source format, and the only place that knows these formats.

`detect` tells a file's format from its bytes, and `checkpoints` finds the generator among what a
file holds. `embedded/` made the files in `weights/`. The commands are `python -m
convert.stylegan2` (any generator), `convert.fetch` and `convert.embedded`.
"""
