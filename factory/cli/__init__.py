"""The ``factory`` command: one module of this folder for each sub-command.

A sub-command's module is imported only when it is called, so that
``factory --help`` answers at once; its summary in the help is the first line
of its docstring.  The one place where errors become exit codes: 0 for done,
2 for the user's fault, 1 for ours, 3 for a variant that its gate turned down.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from factory import plugins
from factory.errors import FactoryError, SystemFault

log = logging.getLogger(__name__)

INTERRUPTED = 130


class LazyGroup(TyperGroup):
    """Lists the sub-commands from their docstrings and imports the one that is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in plugins.names("commands"):
            self.commands[name] = TyperCommand(name, help=plugins.summary("commands", name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the listed stand-in by the command itself."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in plugins.names("commands"):
            loaded = plugins.load("commands", name)
            if not isinstance(loaded, typer.Typer):
                raise SystemFault(f"The command {name!r} is not a typer.Typer.", hint="Let its PLUGIN be one.")
            command = typer.main.get_command(loaded)
            # typer gives every application options that install a shell's completion; here it is a sub-command only.
            command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer itself would end an interrupted one without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("\nInterrupted. Finished trials are kept: `factory run ID` goes on where this stopped.\n")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    help="Order, make, inspect and serve model variants.",
    epilog="State lives in FACTORY_HOME (.factory). `factory doctor` says what is missing.",
)


@app.callback()
def _logging(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens, with request and trial ids."),
) -> None:
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app()
    except FactoryError as error:
        sys.exit(_explain(error))
    except Exception as error:
        log.info("unexpected", exc_info=True)
        fault = SystemFault(
            f"Unexpected {type(error).__name__}: {error}.",
            hint="Please report it with the traceback that `factory --verbose ...` shows.",
        )
        sys.exit(_explain(fault))


def _explain(error: FactoryError) -> int:
    """Print an error for people, or as the one JSON shape where ``--json`` was asked for."""
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(error.as_dict(), indent=2) + "\n")
    lines = [f"Error: {error.message}"]
    unnamed = [d for d in error.details if not re.search(rf"(?<!\w){re.escape(d.field)}(?!\w)", error.message)]
    if len(error.details) == len(unnamed) == 1:
        lines += [f"  - {d.field}: {d.message}" for d in unnamed]
    if len(error.details) > 1:
        lines = [f"Error: {error.message.partition(':')[0].rstrip('.')}: {len(error.details)} problems."]
        lines += [f"  - {d.field}: {d.message}" for d in error.details]
    if error.hint:
        lines.append(f"Hint: {error.hint}")
    sys.stderr.write("\n".join(lines) + "\n")
    return error.exit_code
