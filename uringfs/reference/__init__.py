"""What is made of the parser, and so of the table of options: man pages and completion."""
