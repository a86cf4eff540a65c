"""``python -m broker_policy.cli`` is ``mas``."""

from broker_policy.cli import main

main()
