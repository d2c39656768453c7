"""Converters: one module for each source format, and the only place that knows these formats."""
