"""Do the work of the Generate tab."""
