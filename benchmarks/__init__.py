"""Benchmarks: each prints a table and writes JSON; see the README of this folder."""
