"""Backend of the Models tab."""
