"""Audit a user's model: does the subgradient at the kinks matter for it?

``relucheck.audit`` is the entry.
The package is not called ``audit``, because the module would then take the place of the function ``relucheck.audit``.
"""
