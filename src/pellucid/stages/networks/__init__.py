"""Networks: trained from a recipe, used on files and arrays, given away."""
