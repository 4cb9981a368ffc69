"""Arrays gone through in pieces that fit into memory."""
