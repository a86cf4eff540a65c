"""Tokens of sidecars: what is in one, and how it is signed, read and spelled (ADR 33)."""
