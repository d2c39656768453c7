"""The page: `python -m stylesr_jax.web`.

`photos`, `request`, `searches`, `results` and `sessions` know nothing of browsers; `page` ties them
to Gradio's components, `guard` says what a browser may ask for, and `serve` runs the server.
"""
