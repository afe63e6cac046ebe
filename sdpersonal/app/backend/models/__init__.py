"""What the Base tab does."""
