"""Any recipes x widths x models on paired pictures: how far from full precision, and how many bits it took.

``plan`` lists the rows, ``row`` measures one the way a user would, ``__main__`` runs what is missing and writes the result.
"""
