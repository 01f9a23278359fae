"""The boxes of Inset: each file holds one plain class and its thin Ray Serve deployment."""
