"""Backend of the Library tab."""
