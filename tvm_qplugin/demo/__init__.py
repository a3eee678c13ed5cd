"""The embedded demo: a small CNN for 8x8 digits, with its calibration and test data."""
