"""What can go wrong with backups.

MasError
|- BackupError
   |- BackupDamaged       the file is truncated, altered, or no backup
   |- WrongPassphrase     the passphrase does not open it
   |- BackupInconsistent  the log and the audit in it are not of the same moment
   |- PauseTooLong        the copy would have halted the servers for too long
   |- FolderInUse         the folder to restore into is not empty
"""

from __future__ import annotations

from mas_nats.errors import MasError


class BackupError(MasError):
    """Anything about backups."""


class BackupDamaged(BackupError):
    """The file is truncated, altered, or no backup. Nothing was written."""


class WrongPassphrase(BackupError):
    """The passphrase does not open the file."""


class BackupInconsistent(BackupError):
    """What the audit says and what the log holds are not of the same moment."""


class PauseTooLong(BackupError):
    """The servers would have been halted for longer than allowed; they go on, and there is no backup."""


class FolderInUse(BackupError):
    """The folder to restore into is not empty."""
