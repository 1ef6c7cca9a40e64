"""What runs graphs: one module for each engine library, and the protocol that they share."""
