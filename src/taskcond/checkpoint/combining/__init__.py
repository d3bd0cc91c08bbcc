"""Several specialists become one checkpoint: recipe, methods and checks."""
