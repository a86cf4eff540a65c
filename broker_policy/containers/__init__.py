"""The same system in containers (``compose.yaml``): who gets which file, and what runs before the rest."""
