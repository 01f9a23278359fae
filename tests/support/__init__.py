"""What the tests share, besides fixtures."""
