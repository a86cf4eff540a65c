"""The explorer on the healthcare example, with traffic."""
