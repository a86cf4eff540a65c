"""Documents of CASA's form, for tests."""

from __future__ import annotations

_POLICY = """
apiVersion: casa.io/v1alpha1
kind: CASAPolicy
metadata: {{name: a-policy, namespace: {namespace}}}
spec:
  targetRef: {{kind: Deployment, name: {app}}}
  {said}
"""


def policy(app: str, said: str, namespace: str = "one") -> str:
    """A ``CASAPolicy`` about ``app``."""
    return _POLICY.format(app=app, said=said, namespace=namespace)
