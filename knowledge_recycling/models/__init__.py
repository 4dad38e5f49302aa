"""Networks; a kind of the recipe is a file of a folder here."""
