"""Direct state: agents write their own key themselves; a worker audits each change afterwards (ADR 10)."""
