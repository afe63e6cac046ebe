"""Do the work of the Library tab."""
