"""`main`: runs a command, prints its report, and turns errors into messages."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from taskcond.checkpoint.cli.commands import Command
from taskcond.merging.report import MergeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0; 1 if the command was refused, with the reason on stderr; 130 if it was interrupted; 143
        if it was terminated (SIGTERM). Wrong usage exits with 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"taskcond {importlib.metadata.version('taskcond')}")
        return 0
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="taskcond",
        description="Inspect, compare, merge, grow, combine and convert checkpoints of policies "
        "with tasks. `--version` prints the version. Exit code: 0 done, 1 refused (the reason is "
        "on stderr), 2 wrong usage.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may lack letters of a task's name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            report = command.run()
        print(json.dumps(_plain(report), indent=2) if command.json else report, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _refuse("interrupted; nothing was written", command.json)
        return 130
    except _Terminated:
        _refuse("terminated; nothing was written", command.json)
        return 143
    except Exception as error:
        return _refuse(_reason(error), command.json)
    return 0


class _Terminated(BaseException):
    """Raised by SIGTERM, so that everything is cleaned up as after Ctrl-C."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the command with a clean-up, where signals can be handled."""

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or a second one would end the clean-up
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _reason(error: Exception) -> str:
    if isinstance(error, MergeError):
        return _flags(error)
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    expected = isinstance(error, (ValueError, TypeError, OSError, ImportError))
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _flags(error: MergeError) -> str:
    """Describes the problems of a merge, with the flags that would accept them."""
    problems = error.problems
    lines = [problems.summary(), problems.details()]
    flags = [f"--rename '{old}={new}'" for old, new in problems.rename.items()]
    flags += [f"--{name} '{path}'" for name in ("keep", "drop") for path in getattr(problems, name)]
    if problems.rename:
        lines.append("only the beginning of most paths differs")
    if flags:
        lines.append(f"to accept this: {' '.join(flags)}")
    if problems.idle_tables:
        lines.append("rows were not used, as no leaf is called as a task table; use --table PATH")
    if problems.tables:
        lines.append("to remap task rows: --vocabulary, or --rows=0,2,-1 (-1 for a new task)")
    return "\n".join(lines)


def _refuse(reason: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": reason}))
    print(f"taskcond: {reason}", file=sys.stderr)
    return 1


def _plain(report: Any) -> dict[str, Any]:
    content = dataclasses.asdict(report)
    # JSON has no NaN and no infinity.
    return json.loads(json.dumps(content, default=str), parse_constant=lambda name: name)
