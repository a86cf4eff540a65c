"""What agents and the policy service agree on: names, headers, verdicts, identities.

Nothing here opens a connection; both sides import it, and it imports neither.
"""
