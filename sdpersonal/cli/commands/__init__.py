"""The commands, a module for each group: what can be asked (Settings), what is done, and `COMMANDS`, which `cli` reads.

A module here loads nothing heavy; a command that needs torch imports it when it is run.
"""
