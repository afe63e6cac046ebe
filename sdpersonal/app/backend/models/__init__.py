"""Do the work of the Models tab."""
