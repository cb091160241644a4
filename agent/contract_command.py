"""`python -m agent contract`: writes the wire contract from its one source in code."""
