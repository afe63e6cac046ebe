"""Show results to people: image grids, HTML pages, progress bars, and numbers with units."""
