"""Sphinx settings."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the pages of examples

project = "taskcond"
author = "the taskcond authors"
version = release = version_of("taskcond")
html_title = f"taskcond {version}"
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # the text of the source, and not the address of a function
python_maximum_signature_line_length = 88
default_role = "py:obj"  # single backticks in docstrings link to what they name
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

_ELSEWHERE = {
    r"jax(\.[\w.]+)?": "https://docs.jax.dev/en/latest/search.html?q={}",
    r"jnp\.[\w.]+": "https://docs.jax.dev/en/latest/search.html?q={}",
    r"(flax\.)?(nnx|linen)\.[\w.]+": "https://flax.readthedocs.io/en/latest/search.html?q={}",
    r"optax\.[\w.]+": "https://optax.readthedocs.io/en/latest/search.html?q={}",
}

_PACKAGES = ("", "taskcond.", "taskcond.checkpoint.", "taskcond.diagnostics.", "examples.lerobot.")

_PRINTED = {
    r"<class '([\w.]+)'>": r"\1",
    r"<function (\w+) at 0x\w+>": r"\1",
}


def link_elsewhere(app: Sphinx, env: Any, node: nodes.Element, content: nodes.TextElement) -> Any:
    """Links names of other packages of ours, and of jax, flax and optax, in docstrings.

    An inventory of jax would have to be fetched at each build.
    """
    name, objects = node["reftarget"], env.domains["py"].objects
    for full in (part + name for part in _PACKAGES):
        if full in objects:
            entry = objects[full]
            here = app.builder.get_relative_uri(node["refdoc"], entry.docname)
            return nodes.reference("", "", content, refuri=f"{here}#{entry.node_id}")
    for pattern, url in _ELSEWHERE.items():
        if re.fullmatch(pattern, name):
            return nodes.reference("", "", content, refuri=url.format(name), internal=False)
    return None


def link_names(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Links public names in the code of a sentence to their entry in the reference."""
    if page.startswith("reference/api/"):
        return
    objects = app.env.domains["py"].objects  # type: ignore[attr-defined]
    for literal in list(tree.findall(nodes.literal)):
        text = literal.astext().removesuffix("()")
        full = next((name for part in _PACKAGES if (name := part + text) in objects), None)
        is_linked = isinstance(literal.parent, nodes.reference)
        if full is None or is_linked or objects[full].objtype == "module":
            continue
        entry = objects[full]
        uri = app.builder.get_relative_uri(page, entry.docname) + f"#{entry.node_id}"
        literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=uri))


def plain_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Writes a default as in the source, and not as Python prints it."""
    for pattern, text in _PRINTED.items():
        signature = signature and re.sub(pattern, text, signature)
    return signature, returns


def setup(app: Sphinx) -> None:
    """Registers the links."""
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("missing-reference", link_elsewhere)
    app.connect("doctree-resolved", link_names)
