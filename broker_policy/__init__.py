"""The policy service between every sender and every receiver, and the operator's tools."""
