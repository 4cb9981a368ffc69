"""Looking after what is stored: verify and doctor."""
