"""What a user would otherwise run on the same machine, tuned as well as we know how."""
