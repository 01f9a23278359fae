"""The chunk index: finds the photos with the chunks nearest to a vector."""
