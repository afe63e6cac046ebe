"""Concepts: their file format and library, importers and exporters, merging, comparison and the Hub."""
