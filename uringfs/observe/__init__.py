"""What a server tells of itself, and what shows it."""
