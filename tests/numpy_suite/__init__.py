"""NumPy's own tests of its functions, with the arrays that they pass in a `PMArray`."""
