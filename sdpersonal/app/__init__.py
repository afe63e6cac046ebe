"""The Gradio app: `backend` works without a page, `ui` shows it."""
