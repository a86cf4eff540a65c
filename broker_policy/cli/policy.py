"""``mas policy``: try out what policy says, without sending anything. Its commands are in ``policy_*.py``."""

from __future__ import annotations

import typer

from broker_policy.cli.app import app

policy_app = typer.Typer(help="Dry runs and tests of policy.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
