"""What of a picture is kept, and what is drawn anew."""
