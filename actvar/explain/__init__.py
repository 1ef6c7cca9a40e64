"""What an ActVAR chose for a picture: recorded, counted, drawn, and put on one page."""
