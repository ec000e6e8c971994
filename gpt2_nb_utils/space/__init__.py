"""Room 05: the trained model for others.

`hf_format` writes and reads a model as Hugging Face's `transformers` does, `parity` holds the two libraries against each other,
`card` says in words what the model is, and `folder` puts all of it beside the app (`app/`), ready to be a Space. `serve` starts that app
here and `screenshots` takes its picture. This room deliberately knows nothing of training, and the app nothing of this package.
"""
