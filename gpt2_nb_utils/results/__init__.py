"""Room 04: what a finished run shows. Everything here reads a run directory; nothing trains or changes one.

`run` loads what is there, `verdict` holds it against the course's target, `figures` draws the curves, `measure` runs
the trained model over the corpus again, and `token_paint`, `surprise`, `passages`, `recall` and `overview` show what it
knows; `recall_growth` shows how it came to know it, `provenance` where its words come from, `attention` where its heads
look.
`verify` trusts none of it: `evidence` reads every part anew, `audit_weights`, `audit_records`, `audit_agreement` and
`audit_outputs` check it, and what they find is left beside the run (`audit`).
"""
