"""Portable definitions (TE) of the integer and float kernels, one file per family."""
