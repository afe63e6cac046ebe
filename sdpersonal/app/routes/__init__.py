"""The page's routes: they check what the page sends, call the backend, and answer in JSON."""
