"""The code of the pages of the documentation, and the README."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(page: str, **names) -> dict:
    """Runs the page's blocks as one script, and returns its names."""
    names["__name__"] = page
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), names)
    return names
