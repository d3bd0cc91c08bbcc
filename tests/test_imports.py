"""`import taskcond` is light, and reaches its packages without importing them eagerly."""

import importlib.metadata
import os
import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_packages_are_imported_when_they_are_used():
    code = (
        "import sys, taskcond\n"
        "print([m for m in ('tensorstore', 'pydantic', 'tyro') if m in sys.modules])\n"
        "print('taskcond.checkpoint' in sys.modules, 'taskcond.linen' in sys.modules)\n"
        "print(taskcond.checkpoint.load_params.__name__, taskcond.linen.TaskConditioner.__name__,"
        " taskcond.diagnostics.task_confusion.__name__)\n"
    )
    expected = "[]\nFalse False\nload_params TaskConditioner task_confusion\n"
    assert run(code) == expected


def test_an_unknown_name_is_an_attribute_error():
    code = "import taskcond\ntry: taskcond.confusion\nexcept AttributeError as e: print(e)"
    assert "module 'taskcond' has no attribute 'confusion'" in run(code)


def test_the_version_is_that_of_the_distribution():
    version = importlib.metadata.version("taskcond")
    assert run("import taskcond; print(taskcond.__version__)") == f"{version}\n"
    for command in (["-m", "taskcond"], ["-c", "import taskcond.__main__ as m; m.main()"]):
        done = subprocess.run(
            [sys.executable, *command, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"taskcond {version}\n"


def test_no_module_starts_a_backend():
    """A program may call `jax.distributed.initialize` after its imports, or choose a platform."""
    code = (
        "import importlib, pkgutil, examples, benchmarks, taskcond\n"
        "for package in (examples, benchmarks, taskcond):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if '__main__' in module.name: continue\n"
        "        try: importlib.import_module(module.name)\n"
        "        except ImportError: pass  # of an extra\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "none"}  # whose start is an error
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
