"""Tokens of sidecars: the keys that sign them, the checks before one is given, what is remembered of them."""
