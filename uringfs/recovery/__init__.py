"""A mount outlives its server: who watches it, and who takes over."""
