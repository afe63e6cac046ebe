"""Answer the page's requests: check what it sends, call the backend, and return JSON."""
