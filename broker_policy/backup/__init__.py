"""Backup and restore of everything in one folder to one point in time (ADR 12).

``take`` freezes the servers for as long as it takes to copy what changed since a first copy; what is copied
is what a kill at that moment would have left. ``restore`` puts it into an empty folder.
"""
