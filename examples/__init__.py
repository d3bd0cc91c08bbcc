"""Whole, real configurations: each can be the start of a project."""
