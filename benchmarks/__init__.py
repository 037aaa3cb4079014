"""Measurements whose results are committed in ``results/``; see ``README.md`` beside this file."""
