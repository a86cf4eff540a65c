"""Programs that show how the parts are used; each runs in the tests."""
