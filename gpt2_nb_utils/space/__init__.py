"""Room 05: the trained model for others.

`export` takes the best model of a run, `hf_format` writes it as Hugging Face's `transformers` reads it and `hf_reader` reads it back,
`card` says in words what it is, and `folder` puts all of that beside the app (`app/`), ready to be a Space. `parity` holds the two
libraries against each other, `serve` starts the app here and `screenshots` takes its picture; `show` is what notebook 05 shows. This
room deliberately knows nothing of how a model is trained, and the app nothing of this package.
"""
