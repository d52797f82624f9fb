"""The command line: `tickets`.

Output for people goes to a terminal, JSON for machines to standard output with --json; everything else
goes to standard error. Exit codes: 0 done, 1 a finding, 2 wrong usage. Deliberately absent: what the
commands do; this is how they are asked for.
"""

import click

from api.cli import auditing, exporting, projecting, replaying, serving


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Ticket Service: an immutable ledger, replayable history, fast read models."""


for command in (*serving.COMMANDS, *auditing.COMMANDS, *exporting.COMMANDS, *replaying.COMMANDS, *projecting.COMMANDS):
    main.add_command(command)
