"""``mas explorer``: its data, who gets in, and its pages in a real browser."""
