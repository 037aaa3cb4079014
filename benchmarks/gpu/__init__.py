"""Speed and memory on an NVIDIA GPU: ceilings, layers, and whole denoisers beside bfloat16 and what others have."""
