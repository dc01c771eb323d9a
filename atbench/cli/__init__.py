"""The command line: verbs, completion, and what this machine has."""
