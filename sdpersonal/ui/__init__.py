"""The app: one page on this machine. Only this package knows Gradio, and of it `studio` and `shelf` do not."""
