"""Large texts in files, looked at as files: their places, rights, damage, and how they come and go."""
