"""POPE: question files, and the questions of a run."""
