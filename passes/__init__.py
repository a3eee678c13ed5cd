"""Relax passes, one a file, in the order of tvm_qplugin/pipeline.py."""
