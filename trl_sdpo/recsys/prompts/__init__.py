"""The words around the titles, and how many tokens they take."""
