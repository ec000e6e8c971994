"""papermill runs the notebooks, nbconvert turns them into the report, the README blocks are filled."""
