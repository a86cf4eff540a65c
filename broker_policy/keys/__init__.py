"""Every key of an installation: what there is, and how each is replaced while the system runs (ADR 21)."""
