"""Sphinx settings."""

project = "taskcond"
author = "the taskcond authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them; jaxtyping's shapes read badly as prose
default_role = "code"
myst_enable_extensions = ["colon_fence"]
