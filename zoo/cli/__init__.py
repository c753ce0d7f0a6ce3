"""The command line. Every command imports what it needs when it runs, so that ``--help`` answers at once.

Exit codes: 0 done, 2 a mistake the user can mend (one line says how), 1 a bug, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys

import typer

from zoo.cli import bench, convert, doctor, evaluate, info, listing, predict, reproduce, trace, train, upcycle
from zoo.cli.new_plugin import new_plugin_command
from zoo.spec import ZooError

MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENAMETOOLONG)
NO_MEMORY = "can't allocate memory"

app = typer.Typer(
    name="zoo",
    help="Mixture-of-experts models of every modality: list, train, evaluate, use. Settings are written key=value.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(listing.list_command)
app.command("info")(info.info_command)
app.command("train")(train.train_command)
app.command("eval")(evaluate.eval_command)
app.command("trace")(trace.trace_command)
app.command("predict")(predict.predict_command)
app.command("reproduce")(reproduce.reproduce_command)
app.command("convert")(convert.convert_command)
app.command("upcycle")(upcycle.upcycle_command)
app.command("doctor")(doctor.doctor_command)
app.add_typer(bench.app, name="bench")
app.command("new-plugin")(new_plugin_command)


@app.callback()
def options(
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error. May stand anywhere in the line."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line, and turn errors into one line on standard error."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="zoo")
    except ZooError as error:
        _stop(f"error: {error}", 2, debug, error)
    except BrokenPipeError:
        # The reader has gone (``zoo list | head``): what is left to print has no one to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        remedy = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "change its rights"
        _stop(
            f"error: cannot use '{error.filename or ''}': {error.strerror}; {remedy} or name another", 2, debug, error
        )
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError on an accelerator; on the CPU torch has no class for it.
        said = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError" and NO_MEMORY not in said:
            raise
        remedy = "lower train.batch_size or batch_size, the context or the model's size"
        _stop(f"error: out of memory: {said[:300]}; {remedy}", 2, debug, error)


def _stop(line: str, code: int, debug: bool, error: BaseException) -> None:
    if debug:
        raise error
    print(line, file=sys.stderr)
    sys.exit(code)
