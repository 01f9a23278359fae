"""The verifier: looks at pixels, and says whether a query is in a photo, and where."""
