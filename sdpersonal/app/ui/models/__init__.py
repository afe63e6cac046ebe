"""The Base tab."""
