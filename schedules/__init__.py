"""Schedules and generated kernels, per target."""
