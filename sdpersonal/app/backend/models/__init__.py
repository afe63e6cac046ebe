"""Backend of the Base tab."""
