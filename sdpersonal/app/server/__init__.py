"""The app: one page on this machine. Only this package knows Gradio; what its buttons do is in `backend`."""
