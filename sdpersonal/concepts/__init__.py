"""Concepts: one file each, a library of them, importers and exporters, and what is shared on the Hub."""
