"""What this machine has of all that a mount stands on, and how to get the rest."""
