"""Arithmetic, words and tables that every other part shares: numpy and stdlib only."""
