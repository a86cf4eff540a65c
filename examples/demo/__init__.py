"""``make demo``: the whole way of a message on real servers, told as it happens."""
