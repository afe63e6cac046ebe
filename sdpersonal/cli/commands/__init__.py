"""The commands, a module for each group: argument classes, functions, and `COMMANDS`, which `cli.main` reads.

No module here imports anything heavy; a command that needs torch imports it when it runs.
"""
