"""Accounts, their streams, and the keys and connections that reach them."""
