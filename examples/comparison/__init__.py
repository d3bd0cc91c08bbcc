"""A policy before and after task conditioning."""
