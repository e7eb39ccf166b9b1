"""Where documents go. `base` is the contract; each other file is one search engine that keeps it."""
