"""The tests; `system.py` is a running broker for the suites that need one."""
