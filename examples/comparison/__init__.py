"""Compares a policy before and after task conditioning."""
