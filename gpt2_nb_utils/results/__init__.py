"""What a finished run shows (notebook 04). Everything here reads a run directory; nothing trains.

`record` is the one reader of a run directory, `verdict` checks it against the course's target,
`facts` and `overview` say what it holds, `runs_table` shows several runs side by side. `measure`
runs the trained model over the corpus again and `token_losses` keeps what it finds; `passages`,
`recall`, `provenance` and `attention` show what the model knows and how it came to know it.
`verify` trusts none of it: `evidence` reads every part again; `audit_weights`, `audit_records` and
`audit_outputs` check it, `replay` trains its first steps again, and what they find is left beside the run (`audit`).
"""
