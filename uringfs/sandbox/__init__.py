"""What the server gives up once it is set up, and who does what it then cannot do."""
