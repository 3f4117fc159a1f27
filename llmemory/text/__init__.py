"""What is known of text: its languages, its pieces, a query's words, marked passages. Pure."""
