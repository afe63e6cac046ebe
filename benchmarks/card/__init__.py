"""What on_card.py is made of: each part is a module with functions that take a `Session`."""
