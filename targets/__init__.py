"""Target profiles: what a device runs, as tables."""
