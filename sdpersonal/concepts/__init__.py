"""Read, write and combine concepts: their file format and library, importers and exporters, merging and the Hub."""
