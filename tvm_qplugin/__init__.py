"""Quantization, pruning and clustering for Apache TVM as Relax passes."""
