"""Ready-made studies: each repeats a table or figure of a paper with one command.

    python -m benchmarks.studies.table1 [--images DIR] [--limit N] [--steps N] [--out OUT]

Pictures that are kept show faces drawn from the generator with a fixed seed and the public-domain
portrait in docs/images only; numbers can come from any folder of faces (--images). Searches are
kept in --work, so that a study that was stopped goes on where it was.
"""
