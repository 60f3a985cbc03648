"""What a run left behind, shown: the report page, the comparison, the table of runs, the diagnosis."""
