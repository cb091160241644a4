"""`python -m agent settings`: the example file, its JSON Schema, or what is wrong with a file."""
