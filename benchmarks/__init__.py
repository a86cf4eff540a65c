"""Measurements, each on real servers that it starts and stops itself."""
