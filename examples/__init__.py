"""Programs to read and to run: each uses the platform, or makes something for it, as a user would."""
