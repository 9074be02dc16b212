"""What the HTTP servers share, and the server of a reward."""
