"""The screens that operators work in: of each, what it shows, for its page and for the API."""
