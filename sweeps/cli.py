"""The command line. Heavy imports are inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sweeps.commands.api import Sweep
from sweeps.commands.api import open as open_sweep
from sweeps.commands.arguments import (
    AllowCodeChange,
    AnyName,
    AsJson,
    Exclusive,
    Hours,
    Name,
    OnEnd,
    Overrides,
    Preset,
    Quiet,
    RunsDir,
    SpaceFile,
    chosen_space,
    name_or_newest,
    session_options,
)
from sweeps.commands.console import confirmed, console, print_json
from sweeps.commands.exit_codes import code_of, run_to_exit
from sweeps.commands.job import flags_of, is_job, run_there, words_of

app = typer.Typer(
    help="Which batch shape does a Mixture-of-Experts language model learn best from, and how sure is the answer?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def run(
    preset: Preset = None,
    space: SpaceFile = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; numbered without it.")] = None,
    overrides: Overrides = None,
    hours: Hours = None,
    runs_dir: RunsDir = "runs",
    exclusive: Exclusive = False,
    on_end: OnEnd = None,
    quiet: Quiet = False,
) -> None:
    """Run a sweep to its verdict. Without a choice: `matched` where there is a GPU, else `laptop`."""
    from sweeps.running.session import run_new

    if is_job(on_end):
        words = words_of(
            ("--preset", preset),
            ("--space", space),
            ("--name", name),
            ("--hours", hours),
            *(("--set", value) for value in overrides or ()),
        )
        raise typer.Exit(run_there(["run", *words, *flags_of(exclusive=exclusive)], runs_dir, name))
    options = session_options(runs_dir, quiet=quiet, exclusive=exclusive, on_end=on_end)
    raise typer.Exit(code_of(run_new(chosen_space(preset, space, overrides, hours), name, options)))


@app.command()
def resume(
    name: AnyName = None,
    runs_dir: RunsDir = "runs",
    retry_failed: Annotated[bool, typer.Option(help="Run cells that failed or ran out of memory again.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change resources, e.g. --set resources.workers=4."),
    ] = None,
    allow_code_change: AllowCodeChange = False,
    exclusive: Exclusive = False,
    on_end: OnEnd = None,
    quiet: Quiet = False,
) -> None:
    """Resume a sweep that was interrupted. A finished one is left as it is."""
    if is_job(on_end):
        flags = flags_of(exclusive=exclusive, retry_failed=retry_failed, allow_code_change=allow_code_change)
        name = name_or_newest(runs_dir, name)
        words = words_of(*(("--set", value) for value in overrides or ()))
        raise typer.Exit(run_there(["resume", name, *flags, *words], runs_dir, name))
    from sweeps.running.session import resume as resume_sweep

    options = session_options(
        runs_dir,
        quiet=quiet,
        exclusive=exclusive,
        on_end=on_end,
        retry_failed=retry_failed,
        allow_code_change=allow_code_change,
        overrides=tuple(overrides or ()),
    )
    raise typer.Exit(code_of(resume_sweep(name_or_newest(runs_dir, name), options)))


@app.command()
def extend(
    name: Name,
    lr: Annotated[list[float] | None, typer.Option(help="One more rate for every arm. Repeatable.")] = None,
    adamw_lr: Annotated[list[float] | None, typer.Option(help="One more AdamW rate, where it has a grid.")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(metavar="NAME=BxT[xA]", help="One more arm: wide=16x128,model.d_expert=256.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="A larger total of confirm seeds.")] = None,
    budget: Annotated[
        list[int] | None, typer.Option(metavar="TOKENS", help="One more budget for every arm. Repeatable.")
    ] = None,
    runs_dir: RunsDir = "runs",
    allow_code_change: AllowCodeChange = False,
    exclusive: Exclusive = False,
    on_end: OnEnd = None,
    quiet: Quiet = False,
) -> None:
    """Add rates, arms, budgets or confirm seeds to a sweep and run what is new. What has ended never runs again."""
    if is_job(on_end):
        rates = [*(("--lr", v) for v in lr or ()), *(("--adamw-lr", v) for v in adamw_lr or ())]
        arms_and_budgets = [*(("--strategy", v) for v in strategy or ()), *(("--budget", v) for v in budget or ())]
        words = words_of(*rates, *arms_and_budgets, ("--seeds", seeds))
        flags = flags_of(exclusive=exclusive, allow_code_change=allow_code_change)
        raise typer.Exit(run_there(["extend", name, *flags, *words], runs_dir, name))
    from sweeps.commands.extend import extension
    from sweeps.running.session import resume as resume_sweep

    options = session_options(
        runs_dir, quiet=quiet, exclusive=exclusive, on_end=on_end, allow_code_change=allow_code_change
    )
    more = extension(
        options.say,
        lr=lr or (),
        adamw_lr=adamw_lr or (),
        strategies=strategy or (),
        confirm_seeds=seeds,
        budgets=budget or (),
    )
    raise typer.Exit(code_of(resume_sweep(name, options, extend=more)))


@app.command()
def plan(
    preset: Preset = None,
    space: SpaceFile = None,
    overrides: Overrides = None,
    hours: Hours = None,
    assume_gpu_gib: Annotated[float | None, typer.Option(help="Plan bf16 on a GPU of so many GiB.", min=0.1)] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="What an hour of this machine costs, all its GPUs together.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run: cells, tokens, memory and GPU fraction per arm, hours, smallest detectable difference."""
    from sweeps.commands.plan import plan_here, render

    choice = chosen_space(preset, space, overrides, hours)
    found = plan_here(choice, assume_gpu_gib=assume_gpu_gib, price_per_hour=price_per_hour)
    if as_json:
        print_json(found.as_dict())
    else:
        console().print(render(found))


@app.command()
def status(name: AnyName = None, runs_dir: RunsDir = "runs", as_json: AsJson = False) -> None:
    """List sweeps, or show one: cells by outcome, rungs, tokens, time left."""
    from sweeps.commands.status import list_of_sweeps, render_list, render_status, status_of
    from sweeps.ledger.storage import Storage

    if name is None:
        found = list_of_sweeps(Storage(runs_dir))
        print_json(found) if as_json else console().print(render_list(found, runs_dir))
        return
    ledger = open_sweep(name, runs_dir=runs_dir).ledger
    if as_json:
        print_json(status_of(ledger))
    else:
        console().print(render_status(ledger))


@app.command()
def verdict(
    name: Annotated[str | None, typer.Argument(help="Name of the sweep.")] = None,
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Decide from a table (.csv, .parquet): yours, or one of `sweeps records`."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Significance level of a table's verdict; 0.05.")] = None,
    margin: Annotated[float | None, typer.Option(help="Nats below which its differences count for nothing.")] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Equal seeds in a table have nothing in common: Welch's test.")
    ] = False,
    runs_dir: RunsDir = "runs",
    as_json: AsJson = False,
) -> None:
    """Decide again, from a sweep's ledger or from a table of records."""
    from sweeps.errors import BadInputError
    from sweeps.report.terminal import show_verdict

    if (name is None) == (records is None):
        raise BadInputError("name one sweep, or one file with --records")
    if records is None and (alpha, margin, unpaired) != (None, None, False):
        raise BadInputError(
            "--alpha, --margin and --unpaired go with --records; a sweep's rules were fixed at its start"
        )
    if records is not None:
        from sweeps.verdict.records import decide_file

        level = 0.05 if alpha is None else alpha
        found = decide_file(records, alpha=level, margin=margin, unpaired=unpaired)
    else:
        assert name is not None
        sweep = open_sweep(name, runs_dir=runs_dir)
        found = sweep.verdict()
        sweep.ledger.write_verdict(found.as_dict())
    if as_json:
        print_json(found.as_dict())
    else:
        show_verdict(found, console())


@app.command()
def records(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write: FILE.csv or FILE.parquet.")],
    runs_dir: RunsDir = "runs",
) -> None:
    """Write every record as a table, a row a report, which `sweeps verdict --records` reads and pandas too.

    A row with an outcome is the last one of its cell. `lr` is the cell's full rate, `lr_now` that of the last step.
    Every column with its unit: docs/metrics.md, section "Records as a table".
    """
    from sweeps.commands.records import require_table, write_records

    sweep = open_sweep(name, runs_dir=runs_dir)
    require_table(out)
    print("\n".join(write_records(sweep.results(), out)))


@app.command()
def report(
    names: Annotated[
        list[str] | None, typer.Argument(help="A sweep (the newest without it), or several to compare.")
    ] = None,
    runs_dir: RunsDir = "runs",
    out: Annotated[
        Path | None, typer.Option(help="Where a comparison is written; in the runs folder without it.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(help="Of a GPU, or of the machine without one: the report says what is saved.", min=0),
    ] = None,
) -> None:
    """Write report.html, report.md and the pictures again; with several sweeps, put them side by side."""
    found = [open_sweep(name, runs_dir=runs_dir) for name in names or [name_or_newest(runs_dir, None)]]
    if len(found) == 1:
        print(found[0].report(price_per_hour=price_per_hour))
    else:
        print(_comparison(found, runs_dir, out))


def _comparison(sweeps: list[Sweep], runs_dir: str, out: Path | None) -> Path:
    from sweeps.report.compare import compare_report, comparison_folder
    from sweeps.verdict.decision import decide

    folder = comparison_folder(runs_dir, [sweep.name for sweep in sweeps], out)
    results = [sweep.results() for sweep in sweeps]
    return compare_report([(found, decide(found)) for found in results], folder=folder).html


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="The folder to write, new or empty.")],
    cell: Annotated[str | None, typer.Option(help="A cell whose weights are kept, instead of the winner.")] = None,
    runs_dir: RunsDir = "runs",
) -> None:
    """Write the winner as a checkpoint that stock `transformers` loads."""
    from sweeps.running.winner import export as export_checkpoint

    result, why = export_checkpoint(open_sweep(name, runs_dir=runs_dir).ledger, out, cell)
    point = f"{result.cell.strategy} lr={result.cell.lr:g} seed={result.cell.seed} ({result.cell.cell_id})"
    print(f"{out}: {point}, {why}")


@app.command()
def exam(
    name: Name, out: Annotated[Path, typer.Option(help="The .npz file to write.")], runs_dir: RunsDir = "runs"
) -> None:
    """Write the exam's tokens, so that anyone can score a model on it."""
    from sweeps.running.winner import write_exam

    write_exam(open_sweep(name, runs_dir=runs_dir).ledger, out)
    print(f"{out}: test and validation, int32 [rows, S+1]")


@app.command()
def rm(
    name: Name,
    runs_dir: RunsDir = "runs",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a sweep: its folder, its runs in MLflow and its registered model."""
    from sweeps.commands.remove import remove

    ledger = open_sweep(name, runs_dir=runs_dir).ledger
    if not yes and not confirmed(f"Delete sweep {name} in {ledger.storage.uri} and its MLflow runs?"):
        print("Nothing was deleted.")
        return
    print(remove(ledger, runs_dir))


@app.command("gpu-check")
def gpu_check(out: Annotated[Path, typer.Option(help="The file; its table is .md.")] = Path("gpu-check.json")) -> None:
    """On a machine with CUDA: right, fast, packed, resumable or not, in one table of criteria (else exit 4)."""
    from sweeps.commands.gpu_check import gpu_check as check
    from sweeps.ledger.destinations import require_file

    require_file(out, "--out")
    screen = console()
    raise typer.Exit(check(out, screen.print, screen.print))


@app.command()
def sync(
    name: Name,
    runs_dir: RunsDir = "runs",
    register: Annotated[bool, typer.Option(help="Register the arm of lowest mean although none has won.")] = False,
) -> None:
    """Bring MLflow up to date from the ledger, and register a winner that is not registered yet."""
    from sweeps.running.finish import view_of
    from sweeps.running.tracking_session import require_unheld
    from sweeps.running.winner import register_winner
    from sweeps.tracking.projector import sync as sync_view
    from sweeps.tracking.store import tracking_store

    ledger = open_sweep(name, runs_dir=runs_dir).ledger
    require_unheld(ledger)
    store = tracking_store(runs_dir)
    sync_view(view_of(ledger, lambda: None)(), store)
    uri = register_winner(ledger, store, on_request=register)
    if uri is not None:
        print(uri)


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(help="A sweep whose pages are linked.")] = None,
    runs_dir: RunsDir = "runs",
    port: Annotated[int | None, typer.Option(help="A free one without it.", min=1, max=65535)] = None,
) -> None:
    """Open MLflow's UI on 127.0.0.1; Ctrl-C ends it."""
    from sweeps.tracking.store import tracking_store
    from sweeps.tracking.ui import run_ui

    if name is not None:
        open_sweep(name, runs_dir=runs_dir)
    run_ui(tracking_store(runs_dir), lambda line: print(line, flush=True), sweep=name, port=port)


@app.command()
def doctor(runs_dir: RunsDir = "runs") -> None:
    """Show what this machine, cluster, hub and tracking server can do, and what to fix."""
    from sweeps.cluster.connection import cluster_address
    from sweeps.commands.doctor import examine, render
    from sweeps.tracking.store import tracking_store

    address = cluster_address()
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_store(runs_dir).uri
    console().print(render(examine(runs_dir=runs_dir, tracking_uri=tracking_uri, ray_address=address)))


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write.")],
    preset: Preset = None,
    fit: Annotated[
        float | None, typer.Option(metavar="GIB", help="Write micro-batches with which every arm fills so much memory.")
    ] = None,
) -> None:
    """Write a commented space to start from, or a preset."""
    from sweeps.commands.new import new_space

    new_space(path, preset, fit, print)


def main() -> NoReturn:
    """The console script: runs a command and turns errors into one message and an exit code."""
    run_to_exit(app)


if __name__ == "__main__":
    main()
