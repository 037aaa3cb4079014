"""Doors into other libraries: diffusers' quantization backend."""
