"""What a bundle is: its contract, its manifest, its plans, and the JSON forms that they are read by. Plain Python."""
