"""Studies: data sets x seeds x ablation rows, as one table and one figure."""
