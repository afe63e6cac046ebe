"""Run the app's server: one page on this machine. Only this package knows Gradio; `backend` does the buttons' work."""
