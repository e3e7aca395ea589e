"""Studies that anybody can repeat: each is one file and one command, and writes its own figures into its own page."""
