"""Observers: what calibration remembers of a tensor."""
