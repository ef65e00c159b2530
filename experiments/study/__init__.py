"""Studies: methods x settings x seeds as data, run in a pool of processes."""
