"""Makes this folder importable, so that test files can share ``tiny``."""
