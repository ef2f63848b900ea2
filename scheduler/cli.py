"""The `heliu` commands of this package."""

import typer

from scheduler import cli_arrays, cli_files, cli_fleet, cli_job_control, cli_jobs, cli_simulate, cli_why, cli_windows

app = typer.Typer()
for part in (cli_jobs, cli_why, cli_job_control, cli_arrays, cli_files, cli_fleet, cli_simulate, cli_windows):
    app.registered_groups.extend(part.app.registered_groups)
    app.registered_commands.extend(part.app.registered_commands)
