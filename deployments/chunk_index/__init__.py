"""The chunk index: vectors to the photos with the nearest chunks."""
