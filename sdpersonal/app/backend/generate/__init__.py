"""Backend of the Generate tab."""
