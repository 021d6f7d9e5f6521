"""Rows, tokens and batches: everything between a path the user typed and the arrays of a step."""
