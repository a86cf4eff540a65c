"""Who is who: nkeys, NATS JWTs, and X.509-SVIDs of the development CA."""
