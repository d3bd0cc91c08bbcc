"""Several specialists become one checkpoint."""
